"""Elementwise ops."""

from __future__ import annotations

import math
from collections.abc import Callable

from ....ir import Op, ops
from ..writer import OpWriter, Writer, writes

_UNARY: dict[type[Op], str] = {
    ops.ReluOp: "Relu",
    ops.SigmoidOp: "Sigmoid",
    ops.HardSwishOp: "HardSwish",
    ops.TanhOp: "Tanh",
    ops.ExpOp: "Exp",
    ops.LogOp: "Log",
    ops.SqrtOp: "Sqrt",
    ops.ReciprocalOp: "Reciprocal",
    ops.ErfOp: "Erf",
    ops.SinOp: "Sin",
    ops.CosOp: "Cos",
    ops.NegOp: "Neg",
    ops.AbsOp: "Abs",
    ops.FloorOp: "Floor",
    ops.CeilOp: "Ceil",
    ops.RoundOp: "Round",
    ops.LogicalNotOp: "Not",
}
_BINARY: dict[type[Op], str] = {
    ops.AddOp: "Add",
    ops.SubOp: "Sub",
    ops.MulOp: "Mul",
    ops.DivOp: "Div",
    ops.PowOp: "Pow",
    ops.MaximumOp: "Max",
    ops.MinimumOp: "Min",
    ops.EqOp: "Equal",
    ops.LtOp: "Less",
    ops.LeOp: "LessOrEqual",
    ops.GtOp: "Greater",
    ops.GeOp: "GreaterOrEqual",
    ops.LogicalAndOp: "And",
    ops.LogicalOrOp: "Or",
    ops.WhereOp: "Where",
}


def _named(kind: str) -> OpWriter:
    def write(writer: Writer, op: Op) -> str:
        return writer.node(kind, *map(writer.name, op.inputs))

    return write


def _each(table: dict[type[Op], str], make: Callable[[str], OpWriter]) -> None:
    for op, kind in table.items():
        writes(op)(make(kind))


_each(_UNARY | _BINARY, _named)


@writes(ops.NeOp)
def not_equal(writer: Writer, op: ops.NeOp) -> str:
    return writer.node("Not", writer.node("Equal", writer.name(op.lhs), writer.name(op.rhs)))


@writes(ops.ClampOp)
def clamp(writer: Writer, op: ops.ClampOp) -> str:
    dtype = op.x.type.dtype
    bounds = (op.attrs.min, op.attrs.max) if dtype.is_floating else op.integer_bounds
    names = [writer.number(bound, dtype.torch) if math.isfinite(bound) else "" for bound in bounds]
    return writer.node("Clip", writer.name(op.x), *names)


@writes(ops.CastOp)
def cast(writer: Writer, op: ops.CastOp) -> str:
    return writer.cast(writer.name(op.x), op.attrs.dtype)


@writes(ops.LeakyReluOp)
def leaky_relu(writer: Writer, op: ops.LeakyReluOp) -> str:
    return writer.node("LeakyRelu", writer.name(op.x), alpha=float(op.attrs.negative_slope))


@writes(ops.GeluOp)
def gelu(writer: Writer, op: ops.GeluOp) -> str:
    return writer.node("Gelu", writer.name(op.x), approximate=op.attrs.approximate)


@writes(ops.HardSigmoidOp)
def hard_sigmoid(writer: Writer, op: ops.HardSigmoidOp) -> str:
    return writer.node("HardSigmoid", writer.name(op.x), alpha=1 / 6, beta=0.5)


@writes(ops.SiluOp)
def silu(writer: Writer, op: ops.SiluOp) -> str:
    x = writer.name(op.x)
    return writer.node("Mul", x, writer.node("Sigmoid", x))


@writes(ops.RsqrtOp)
def rsqrt(writer: Writer, op: ops.RsqrtOp) -> str:
    return writer.node("Reciprocal", writer.node("Sqrt", writer.name(op.x)))


@writes(ops.ObserveOp, ops.RelayoutOp)
def same(writer: Writer, op: ops.ObserveOp | ops.RelayoutOp) -> str:
    return writer.name(op.x)
