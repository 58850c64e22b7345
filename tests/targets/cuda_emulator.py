"""Runs the CUDA templates without a GPU: the same source, compiled for the processor under ``cuda_emulator.h``."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tersor.targets.cuda.kernel import CudaKernel, library

COMPILER = shutil.which("g++")
_HEADER = Path(__file__).with_name("cuda_emulator.h")
_FLAGS = ("-std=c++17", "-O1", "-fno-strict-aliasing", "-w", "-fPIC")
_built: dict[str, ctypes.CDLL] = {}


def emulate(kernel: CudaKernel, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
    """Run one kernel; all tensors are contiguous, on the CPU and of the kernel's types, and ``output`` is written."""
    for buffer, tensor in zip((*kernel.inputs, kernel.output), (*inputs, output), strict=True):
        assert tensor.is_contiguous() and str(tensor.dtype) == f"torch.{buffer.dtype}", buffer.name
    pointers = (ctypes.c_void_p * (1 + len(inputs)))(output.data_ptr(), *(tensor.data_ptr() for tensor in inputs))
    _build(_translation_unit(kernel)).run(pointers)


def _translation_unit(kernel: CudaKernel) -> str:
    types = [f"{kernel.output.pointee}*", *(f"const {buffer.pointee}*" for buffer in kernel.inputs)]
    arguments = ", ".join(f"static_cast<{type}>(arguments[{i}])" for i, type in enumerate(types))
    grid = ", ".join(f"{extent}u" for extent in kernel.grid)
    launch = f"emulator::launch({{{grid}}}, {kernel.threads}, [&] {{ kernel_body({arguments}); }});"
    entry = f'extern "C" void run(void** arguments) {{\n  {launch}\n}}\n'
    return f"{kernel.source('kernel')}{entry}"


@functools.cache
def _header() -> Path:
    """What all kernels include, compiled once."""
    folder = tempfile.TemporaryDirectory(prefix="tersor-")
    atexit.register(folder.cleanup)
    header = Path(folder.name) / "kernels.h"
    header.write_text(f'#include "{_HEADER}"\n{library(device=False)}')
    subprocess.run(["g++", *_FLAGS, "-x", "c++-header", str(header)], check=True)
    return header


def _build(source: str) -> ctypes.CDLL:
    key = hashlib.sha256(source.encode()).hexdigest()
    if key not in _built:
        with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
            unit, shared = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            unit.write_text(source)
            command = ["g++", *_FLAGS, "-include", str(_header()), "-shared", "-o", str(shared), str(unit)]
            subprocess.run(command, check=True)
            _built[key] = ctypes.CDLL(str(shared))
    return _built[key]
