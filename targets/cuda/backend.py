"""What the rest of Tersor asks of the CUDA family: compile a graph, load its code, run it, or say why not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import tvm
import tvm_ffi

from ...ir import Graph, TersorError
from ...ir.files import temporary_folder
from ..machines.target import Gpu
from ..machines.toolchain import find_toolchain
from ..runtime.compiled_model import CompiledModel
from ..runtime.executable import Executable, Report
from ..runtime.model_info import ModelInfo
from ..runtime.ports import ports
from ..runtime.virtual_machine import LinkedCode
from . import anchors as _anchors  # noqa: F401  (fills the table of kernels by op)
from .codegen import build, cuda_source
from .embedded import binary_object, offer
from .lowering import CudaProgram, lower
from .machine import CudaMachine
from .toolkit import compile_cuda, find_nvcc

_NO_GPU = "no NVIDIA GPU with a driver was found here"
_CUDA_RUNTIME = "libcudart.so.13"  # what apache-tvm 0.27 is linked with


def compile_graph(
    graph: Graph, target: Gpu, *, threads: int | None, report: Report, begin: Callable[[str], None]
) -> Executable:
    """Compile an optimized graph for a GPU, which need not be in this machine.

    Raises
    ------
    CompileError
        When ops have no kernel.
    TersorError
        When NVIDIA's compiler is missing or refuses, or a number of threads is given.
    """
    if threads is not None:
        raise TersorError(f"threads share a processor's work; leave them out when compiling for {target.name}")
    find_nvcc()  # asked before work is spent
    toolchain = find_toolchain(target)
    begin("choose kernels")
    program = lower(graph, target)
    begin("generate code")
    compiled = build(program, target)
    begin("compile kernels")
    source = cuda_source(compiled)
    binary = compile_cuda(source, target.architecture).binary
    begin("link")
    with temporary_folder() as folder:
        path = folder / "model.so"
        addition = binary_object(folder, source, binary, toolchain.command[0])
        toolchain.link(compiled, path, [addition])
        code = LinkedCode(path.read_bytes(), None) if obstacle_here(target) else load_code(path)
    model = CompiledModel(_describe(graph, target, program), code, program.constants, lambda: graph, graph.structure)
    return Executable(model, report=report)


def obstacle_here(target: Gpu) -> str:
    """Why code for ``target`` cannot run in this process, as the end of a sentence; "" where it can."""
    if tvm_ffi.get_global_func("ffi.Module.load_from_bytes.cuda", allow_missing=True) is None:
        return _missing_library()
    if not tvm.cuda(0).exist:
        return _NO_GPU
    found = str(tvm.cuda(0).compute_version)
    needed = target.architecture.removeprefix("sm_")
    if int(found.replace(".", "")) < int(needed):
        return f"the GPU here has compute capability {found}"
    return ""


def _missing_library() -> str:
    """Why TVM's runtime for GPUs could not be loaded, which it tries when it is imported."""
    if not _loads("libcuda.so.1"):  # part of the driver
        return _NO_GPU
    if not _loads(_CUDA_RUNTIME):
        return f"TVM's runtime for GPUs needs {_CUDA_RUNTIME} (of CUDA's runtime, on LD_LIBRARY_PATH)"
    return "this build of TVM has no runtime for GPUs"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def load_code(path: Path) -> LinkedCode:
    """Load the shared object of a model; the file may be deleted afterwards."""
    offer(path)
    return LinkedCode.load(path)


def machine(module: tvm.runtime.Module, constants: Sequence[torch.Tensor]) -> CudaMachine:
    """Something to run a loaded program with."""
    return CudaMachine(module, constants)


def _describe(graph: Graph, target: Gpu, program: CudaProgram) -> ModelInfo:
    inputs, outputs = ports(graph)
    return ModelInfo(graph.name, inputs, outputs, target, program.calls, states=graph.states)
