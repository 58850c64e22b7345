"""The elementwise ops behind a convolution or matrix product, as CUDA source that a kernel runs on each sum.

`EXPRESSIONS` lists the ops that can be fused: a group with any other is computed by the kernels that TVM schedules.
Everything is computed in float and rounded once, when the result is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from ...ir import DType, Op, Value, ops
from ..codegen.group import Group
from .kernel import NAME, Buffer

FLOATS = {DType.F16: "float16", DType.F32: "float32"}

# CUDA source for each op, given the op and the source of its operands, which are names or numbers.
EXPRESSIONS: dict[type[Op], Callable[..., str]] = {
    ops.AddOp: lambda op, x, y: f"{x} + {y}",
    ops.SubOp: lambda op, x, y: f"{x} - {y}",
    ops.MulOp: lambda op, x, y: f"{x} * {y}",
    ops.DivOp: lambda op, x, y: f"{x} / {y}",
    ops.MaximumOp: lambda op, x, y: f"{x} < {y} || {y} != {y} ? {y} : {x}",
    ops.MinimumOp: lambda op, x, y: f"{x} > {y} || {y} != {y} ? {y} : {x}",
    ops.ReluOp: lambda op, x: _clamp(x, 0.0, math.inf),
    ops.ClampOp: lambda op, x: _clamp(x, op.attrs.min, op.attrs.max),
    ops.LeakyReluOp: lambda op, x: f"{x} < 0.0f ? {x} * {number(op.attrs.negative_slope)} : {x}",
    ops.GeluOp: lambda op, x: _gelu_tanh(x) if op.attrs.approximate == "tanh" else _gelu(x),
    ops.SigmoidOp: lambda op, x: f"1.0f / (1.0f + expf(-{x}))",
    ops.SiluOp: lambda op, x: f"{x} / (1.0f + expf(-{x}))",
    ops.HardSigmoidOp: lambda op, x: f"fminf(fmaxf({x} + 3.0f, 0.0f), 6.0f) / 6.0f",
    ops.HardSwishOp: lambda op, x: f"{x} * fminf(fmaxf({x} + 3.0f, 0.0f), 6.0f) / 6.0f",
    ops.TanhOp: lambda op, x: f"tanhf({x})",
    ops.ExpOp: lambda op, x: f"expf({x})",
    ops.ErfOp: lambda op, x: f"erff({x})",
    ops.SqrtOp: lambda op, x: f"sqrtf({x})",
    ops.RsqrtOp: lambda op, x: f"1.0f / sqrtf({x})",
    ops.ReciprocalOp: lambda op, x: f"1.0f / {x}",
    ops.NegOp: lambda op, x: f"-{x}",
    ops.AbsOp: lambda op, x: f"fabsf({x})",
    ops.CastOp: lambda op, x: x,
}


class Reach(Enum):
    """Which element of an operand belongs to a sum."""

    ELEMENT = "index"  # the operand has the result's shape
    COLUMN = "column"  # one number for each column of the matrix product, that is, for each channel
    ONE = "0"  # one number


@dataclass(frozen=True)
class CudaEpilogue:
    """What a kernel does with each sum.

    Attributes
    ----------
    source
        CUDA source of the struct ``KERNEL_epilogue``, whose fields are pointers to the operands.
    operands
        Values of the graph that it reads, each with how.
    buffers
        Names and types of the operands; their shapes are left to the caller.
    dtype
        Element type that is stored.
    """

    source: str
    operands: tuple[tuple[Value, Reach], ...]
    buffers: tuple[Buffer, ...]
    dtype: str

    @property
    def construct(self) -> str:
        """CUDA source that makes the struct from the kernel's parameters."""
        return f"{NAME}_epilogue{{{', '.join(buffer.name for buffer in self.buffers)}}}"


def make_epilogue(group: Group, channel_axis: int, *, bias: Value | None = None) -> CudaEpilogue | None:
    """The epilogue of a group, or None when there is an op or an operand that kernels do not take.

    Parameters
    ----------
    channel_axis
        Dimension of the result that the columns of the matrix product become.
    bias
        One number per column, added first.
    """
    result = group.result
    shape = result.type.shape
    if result.type.dtype not in FLOATS or any(type(op) not in {*EXPRESSIONS, ops.FullOp} for op in group.epilogue):
        return None
    lines = ["float v = sum;"]
    names: dict[Value, str] = {} if group.anchor is None else {group.anchor.result: "v"}
    operands: list[tuple[Value, Reach]] = []
    if bias is not None:
        operands.append((bias, Reach.COLUMN))
        lines.append(f"v = v + {_read(0, Reach.COLUMN)};")
    for value in group.epilogue_operands:
        reach = _reach(value, shape, channel_axis)
        if reach is None:
            return None
        names[value] = f"x{len(operands)}"
        lines.append(f"const float {names[value]} = {_read(len(operands), reach)};")
        operands.append((value, reach))
    if any(value.type.dtype not in FLOATS for value, _ in operands):
        return None
    for op in group.epilogue:
        if isinstance(op, ops.FullOp):
            names[op.result] = number(float(op.attrs.value))
            continue
        if op.result.type.dtype not in FLOATS:
            return None
        arguments = [names[group.outer(value)] for value in op.inputs]
        names[op.result] = f"v{len(names)}"
        lines.append(f"const float {names[op.result]} = {EXPRESSIONS[type(op)](op, *arguments)};")
    lines.append(f"return {names[group.computed] if group.epilogue else 'v'};")
    buffers = tuple(Buffer(f"e{i}", (), FLOATS[value.type.dtype]) for i, (value, _) in enumerate(operands))
    return CudaEpilogue(_struct(buffers, lines), tuple(operands), buffers, FLOATS[result.type.dtype])


def scaled(dtype: str, scale: float) -> CudaEpilogue:
    """The epilogue that only multiplies sums by a number, and stores them as ``dtype``."""
    line = "return sum;" if scale == 1.0 else f"return sum * {number(scale)};"
    return CudaEpilogue(_struct((), [line]), (), (), dtype)


def number(value: float) -> str:
    """A float as CUDA source."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    text = f"{float(value)!r}f"
    return f"({text})" if value < 0 else text


def _struct(buffers: Sequence[Buffer], lines: Sequence[str]) -> str:
    fields = "".join(f"  const {buffer.pointee}* {buffer.name};\n" for buffer in buffers)
    body = "".join(f"    {line}\n" for line in lines)
    signature = "__device__ float operator()(float sum, int column, long index) const"
    return f"struct {NAME}_epilogue {{\n{fields}\n  {signature} {{\n{body}  }}\n}};\n"


def _read(position: int, reach: Reach) -> str:
    return f"tersor::load(e{position} + {reach.value})"


def _reach(value: Value, shape: tuple[int, ...], channel_axis: int) -> Reach | None:
    if value.type.size == 1:
        return Reach.ONE
    if value.shape == shape:
        return Reach.ELEMENT
    aligned = (1,) * (len(shape) - len(value.shape)) + value.shape
    column = tuple(extent if axis == channel_axis % len(shape) else 1 for axis, extent in enumerate(shape))
    return Reach.COLUMN if aligned == column else None


def _clamp(x: str, low: float, high: float) -> str:
    text = x if low == -math.inf else f"({x} < {number(low)} ? {number(low)} : {x})"
    return text if high == math.inf else f"({text} > {number(high)} ? {number(high)} : {text})"


def _gelu(x: str) -> str:
    return f"0.5f * {x} * (1.0f + erff({x} * {number(math.sqrt(0.5))}))"


def _gelu_tanh(x: str) -> str:
    inner = f"{number(math.sqrt(2.0 / math.pi))} * ({x} + 0.044715f * {x} * {x} * {x})"
    return f"0.5f * {x} * (1.0f + tanhf({inner}))"
