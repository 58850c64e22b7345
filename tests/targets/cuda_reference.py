"""Runs a program for CUDA without a GPU: our kernels under the emulator, TVM's loops compiled for the processor.

TVM's loops are scheduled for the GPU, and then run one thread after the other: a schedule is right in any order of its
threads. What is checked so is everything but what only a GPU does: the lowering to Relax, the storage of images, the
packing of weights, epilogues, launches, the source of our kernels, and that TVM has a schedule for all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import tvm
import tvm_ffi
from tvm import relax, tirx

from tersor.ir import Graph
from tersor.targets import resolve_target
from tersor.targets.cuda import anchors as _anchors  # noqa: F401  (fills the table of kernels by op)
from tersor.targets.cuda.codegen import call_passes, graph_passes
from tersor.targets.cuda.kernel import CudaKernel
from tersor.targets.cuda.lowering import CudaProgram, lower
from tersor.targets.cuda.machine import CudaMachine
from tersor.targets.cuda.schedule_rules import schedule_passes
from tersor.targets.machines.target import Gpu
from tersor.tests.targets.cuda_emulator import build, emulate


def gpu(name: str) -> Gpu:
    """A known GPU."""
    found = resolve_target(name)
    assert isinstance(found, Gpu)
    return found


def run_on_processor(graph: Graph, target: Gpu, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs of a graph that is ready for code generation, as the GPU program computes them."""
    program = lower(graph, target)
    machine = CudaMachine(_build(program, target), program.constants, tvm.cpu())
    flat = [tensor.reshape(-1).contiguous() for tensor in inputs]
    outputs = machine.run([tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor for tensor in flat])
    return tuple(
        output.view(value.type.dtype.torch).view(value.shape)
        for output, value in zip(outputs, graph.outputs, strict=True)
    )


def _build(program: CudaProgram, gpu: Gpu) -> Any:
    """A module of TVM's for the processor, which calls the emulator for each of our kernels."""
    build(program.kernels.values())
    with tvm.target.Target(gpu.tvm_target()):
        scheduled = tvm.transform.Sequential([*graph_passes(), *schedule_passes()])(program.module)
    for name, kernel in program.kernels.items():
        tvm_ffi.register_global_func(name, _emulated(kernel), override=True)
    target = tvm.target.Target({"kind": "llvm"})
    with target:
        module = tvm.transform.Sequential(call_passes())(_without_threads(scheduled))
        return relax.build(module, target)


def _without_threads(module: tvm.IRModule) -> tvm.IRModule:
    """The same functions with loops instead of threads."""
    functions = {name: _serial(function) for name, function in module.functions.items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def _serial(function: Any) -> Any:
    if not isinstance(function, tirx.PrimFunc):
        return function
    body = tvm_ffi.structural_map(function.body, (tirx.For, _loop), order="post")
    return function.with_body(body).without_attr("tirx.is_scheduled")


def _loop(loop: tirx.For) -> tirx.For:
    """A loop that is neither unrolled nor bound to a thread."""
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)


def _emulated(kernel: CudaKernel) -> Any:
    def run(*arguments: Any) -> None:
        *inputs, output = (torch.from_dlpack(argument) for argument in arguments)
        emulate(kernel, inputs, output)

    return run
