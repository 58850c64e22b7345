"""A kernel from one of our CUDA templates: its source, its launch, and the PrimFunc that TVM calls it through."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from importlib import resources

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

DEVICE = "device"  # the file that says what kernels ask of the hardware
LIBRARY = ("common", "gemm", "gemv", "grouped")  # the templates, in the order in which they need each other
NAME = "KERNEL"  # stands for the kernel's name in its source, so that equal kernels have equal sources


@dataclass(frozen=True)
class Buffer:
    """An array that a kernel reads or writes.

    Attributes
    ----------
    name
        In the source of the kernel.
    shape
        As its caller declares it; the kernel sees a flat array.
    dtype
        ``"float16"`` or ``"float32"``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def pointee(self) -> str:
        """CUDA's name of the element type."""
        return {"float16": "half", "float32": "float"}[self.dtype]


@dataclass(frozen=True)
class CudaKernel:
    """One launch of a template.

    Attributes
    ----------
    template, knobs
        For profiles: the name of the template, and how it is tiled.
    epilogue
        CUDA source of the struct ``KERNEL_epilogue``.
    call
        Body of the device function, which calls the template.
    inputs, output
        The buffers.
    grid
        Blocks along x, y and z.
    threads
        Threads of a block.
    then
        The kernel that makes the result of this one's output and of what the epilogue reads, if it takes two.
    """

    template: str
    knobs: str
    epilogue: str
    call: str
    inputs: tuple[Buffer, ...]
    output: Buffer
    grid: tuple[int, int, int]
    threads: int
    then: CudaKernel | None = None

    def source(self, name: str) -> str:
        """The device function ``NAME_body`` and its epilogue; the templates themselves are in `library`."""
        parameters = [f"{self.output.pointee}* {self.output.name}"]
        parameters += [f"const {buffer.pointee}* {buffer.name}" for buffer in self.inputs]
        text = f"{self.epilogue}\n__device__ void {NAME}_body({', '.join(parameters)}) {{\n  {self.call}\n}}\n"
        return text.replace(NAME, name)

    def prim_func(self, name: str) -> tirx.PrimFunc:
        """The launch as a PrimFunc of the inputs and the output."""
        text = f"#ifndef TERSOR_KERNELS\n#define TERSOR_KERNELS\n{library()}#endif\n{self.source(name)}"
        with IRBuilder() as builder, T.prim_func(is_private=False, s_tir=False):
            T.func_name(name)
            T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            buffers = [T.arg(b.name, T.buffer(_extents(b.shape), b.dtype)) for b in (*self.inputs, self.output)]
            pointers = [buffer.data for buffer in (buffers[-1], *buffers[:-1])]
            blocks = [T.launch_thread(f"blockIdx.{axis}", n) for axis, n in zip("xyz", self.grid, strict=True)]
            threads = T.launch_thread("threadIdx.x", self.threads)
            with blocks[0], blocks[1], blocks[2], threads:
                T.evaluate(T.cuda.func_call(f"{name}_body", *pointers, source_code=text))
        return builder.get()

    def with_shapes(self, inputs: tuple[tuple[int, ...], ...], output: tuple[int, ...]) -> CudaKernel:
        """The same kernel for callers that declare the buffers in other shapes."""
        shaped = tuple(replace(b, shape=shape) for b, shape in zip(self.inputs, inputs, strict=True))
        return replace(self, inputs=shaped, output=replace(self.output, shape=output))


@functools.cache
def library(*, device: bool = True) -> str:
    """CUDA source of all templates; without ``device`` whoever compiles it supplies what device.cuh does."""
    folder = resources.files(__package__) / "kernels"
    names = ((DEVICE,) if device else ()) + LIBRARY
    texts = ((folder / f"{name}.cuh").read_text(encoding="utf-8") for name in names)
    return "".join(text.replace("#pragma once\n", "") for text in texts)


def _extents(shape: tuple[int, ...]) -> tuple[tirx.IntImm, ...]:
    return tuple(T.int64(extent) for extent in shape)
