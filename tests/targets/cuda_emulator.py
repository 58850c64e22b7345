"""Runs the CUDA templates without a GPU: the same source, compiled for the processor under ``cuda_emulator.h``."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tersor.targets.cuda.kernel import NAME, CudaKernel, library

COMPILER = shutil.which("g++")
_HEADER = Path(__file__).with_name("cuda_emulator.h")
_FLAGS = ("-std=c++17", "-O0", "-fno-strict-aliasing", "-w", "-fPIC")
_built: dict[str, Callable[[Any], None]] = {}  # by source


def emulate(kernel: CudaKernel, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
    """Run one kernel; all tensors are contiguous, on the CPU and of the kernel's types, and ``output`` is written."""
    for buffer, tensor in zip((*kernel.inputs, kernel.output), (*inputs, output), strict=True):
        assert tensor.is_contiguous() and str(tensor.dtype) == f"torch.{buffer.dtype}", buffer.name
    pointers = (ctypes.c_void_p * (1 + len(inputs)))(output.data_ptr(), *(tensor.data_ptr() for tensor in inputs))
    build([kernel])
    _built[_source(kernel, NAME)](pointers)


def build(kernels: Iterable[CudaKernel]) -> None:
    """Compile kernels that are to be run, all at once: most of what the compiler does is the same for each."""
    wanted = {_source(kernel, NAME): kernel for kernel in kernels}
    kernels = [kernel for source, kernel in wanted.items() if source not in _built]
    if not kernels:
        return
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        unit, shared = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        unit.write_text("".join(_source(kernel, f"kernel_{number}") for number, kernel in enumerate(kernels)))
        command = ["g++", *_FLAGS, "-include", str(_header()), "-shared", "-o", str(shared), str(unit)]
        subprocess.run(command, check=True)
        functions = ctypes.CDLL(str(shared))
    for number, kernel in enumerate(kernels):
        _built[_source(kernel, NAME)] = getattr(functions, f"kernel_{number}_run")


def _source(kernel: CudaKernel, name: str) -> str:
    """The kernel, and the function ``NAME_run`` that launches it."""
    types = [f"{kernel.output.pointee}*", *(f"const {buffer.pointee}*" for buffer in kernel.inputs)]
    arguments = ", ".join(f"static_cast<{type}>(arguments[{i}])" for i, type in enumerate(types))
    grid = ", ".join(f"{extent}u" for extent in kernel.grid)
    launch = f"emulator::launch({{{grid}}}, {kernel.threads}, [&] {{ {name}_body({arguments}); }});"
    return f'{kernel.source(name)}extern "C" void {name}_run(void** arguments) {{\n  {launch}\n}}\n'


@functools.cache
def _header() -> Path:
    """What all kernels include, compiled once."""
    folder = tempfile.TemporaryDirectory(prefix="tersor-")
    atexit.register(folder.cleanup)
    header = Path(folder.name) / "kernels.h"
    header.write_text(f'#include "{_HEADER}"\n{library(device=False)}')
    subprocess.run(["g++", *_FLAGS, "-x", "c++-header", str(header)], check=True)
    return header
