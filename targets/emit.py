"""Elementwise ops of the IR as TIR expressions on vectors, and the epilogue of a fused group made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from ..ir import DType, Op
from ..ir import ops as ir_ops
from .templates import vector_math
from .templates.builder import constant
from .templates.vectors import bind, dtype_of, lanes_of

Expr = Any
Emitter = Callable[..., Expr]

# How elements are stored: TIR has no addressable booleans, a byte of 0 or 1 stands for one.
STORAGE = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "uint8",
}

_EMITTERS: dict[type[Op], Emitter] = {}


def emits(*kinds: type[Op]) -> Callable[[Emitter], Emitter]:
    """Register how ops of ``kinds`` are written: ``emitter(op, *operand_vectors) -> vector``."""

    def register(emitter: Emitter) -> Emitter:
        _EMITTERS.update(dict.fromkeys(kinds, emitter))
        return emitter

    return register


def can_emit(op: Op) -> bool:
    """Whether an elementwise op has a vector form on its element types."""
    return type(op) in _EMITTERS


def emit(op: Op, *operands: Expr) -> Expr:
    """The result of an elementwise op, given its operands as vectors of one lane count."""
    return bind(_EMITTERS[type(op)](op, *operands))


def like(vector: Expr, value: float) -> Expr:
    """A vector of ``value`` with the lanes and element type of ``vector``."""
    return constant(value, lanes_of(vector), dtype_of(vector, 1))


def cast(vector: Expr, dtype: str) -> Expr:
    """Convert the element type."""
    lanes = lanes_of(vector)
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", vector)


def as_condition(vector: Expr) -> Expr:
    """The stored form of booleans as a condition."""
    return vector if dtype_of(vector, 1) == "bool" else tirx.NE(vector, like(vector, 0))


def as_stored(vector: Expr) -> Expr:
    """A condition in the form that buffers hold."""
    return cast(vector, "uint8") if dtype_of(vector, 1) == "bool" else vector


@emits(ir_ops.AddOp)
def _add(op: Op, a: Expr, b: Expr) -> Expr:
    return a + b


@emits(ir_ops.SubOp)
def _sub(op: Op, a: Expr, b: Expr) -> Expr:
    return a - b


@emits(ir_ops.MulOp)
def _mul(op: Op, a: Expr, b: Expr) -> Expr:
    return a * b


@emits(ir_ops.DivOp)
def _div(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.Div(a, b)


@emits(ir_ops.MaximumOp)
def _maximum(op: Op, a: Expr, b: Expr) -> Expr:
    return _keep_nan(tirx.Max(a, b), a, b)


@emits(ir_ops.MinimumOp)
def _minimum(op: Op, a: Expr, b: Expr) -> Expr:
    return _keep_nan(tirx.Min(a, b), a, b)


def _keep_nan(value: Expr, a: Expr, b: Expr) -> Expr:
    """NaN where either operand is, as PyTorch defines maximum and minimum."""
    if not dtype_of(a, 1).startswith("float"):
        return value
    return tirx.Select(tirx.NE(a, a), a, tirx.Select(tirx.NE(b, b), b, value))


@emits(ir_ops.PowOp)
def _pow(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.power(a, b)


_COMPARISONS = {
    ir_ops.EqOp: tirx.EQ,
    ir_ops.NeOp: tirx.NE,
    ir_ops.LtOp: tirx.LT,
    ir_ops.LeOp: tirx.LE,
    ir_ops.GtOp: tirx.GT,
    ir_ops.GeOp: tirx.GE,
}


@emits(*_COMPARISONS)
def _compare(op: Op, a: Expr, b: Expr) -> Expr:
    return _COMPARISONS[type(op)](a, b)


@emits(ir_ops.LogicalAndOp)
def _logical_and(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.And(as_condition(a), as_condition(b))


@emits(ir_ops.LogicalOrOp)
def _logical_or(op: Op, a: Expr, b: Expr) -> Expr:
    return tirx.Or(as_condition(a), as_condition(b))


@emits(ir_ops.LogicalNotOp)
def _logical_not(op: Op, a: Expr) -> Expr:
    return tirx.Not(as_condition(a))


@emits(ir_ops.WhereOp)
def _where(op: Op, condition: Expr, a: Expr, b: Expr) -> Expr:
    return tirx.Select(as_condition(condition), a, b)


@emits(ir_ops.ReluOp)
def _relu(op: Op, a: Expr) -> Expr:
    return tirx.Max(a, like(a, 0))


@emits(ir_ops.ClampOp)
def _clamp(op: Op, a: Expr) -> Expr:
    if op.attrs.min != -math.inf:
        a = tirx.Max(a, like(a, op.attrs.min))
    if op.attrs.max != math.inf:
        a = tirx.Min(a, like(a, op.attrs.max))
    return a


@emits(ir_ops.LeakyReluOp)
def _leaky_relu(op: Op, a: Expr) -> Expr:
    return tirx.Select(tirx.GT(a, like(a, 0)), a, a * like(a, op.attrs.negative_slope))


@emits(ir_ops.SigmoidOp)
def _sigmoid(op: Op, a: Expr) -> Expr:
    return vector_math.sigmoid(a)


@emits(ir_ops.SiluOp)
def _silu(op: Op, a: Expr) -> Expr:
    return a * vector_math.sigmoid(a)


@emits(ir_ops.HardSigmoidOp)
def _hard_sigmoid(op: Op, a: Expr) -> Expr:
    return tirx.Min(tirx.Max(a + like(a, 3), like(a, 0)), like(a, 6)) * like(a, 1 / 6)


@emits(ir_ops.HardSwishOp)
def _hard_swish(op: Op, a: Expr) -> Expr:
    return a * _hard_sigmoid(op, a)


@emits(ir_ops.TanhOp)
def _tanh(op: Op, a: Expr) -> Expr:
    return vector_math.tanh(a)


@emits(ir_ops.ExpOp)
def _exp(op: Op, a: Expr) -> Expr:
    return vector_math.exp(a)


@emits(ir_ops.ErfOp)
def _erf(op: Op, a: Expr) -> Expr:
    return vector_math.erf(a)


@emits(ir_ops.GeluOp)
def _gelu(op: Op, a: Expr) -> Expr:
    if op.attrs.approximate == "tanh":
        inner = like(a, math.sqrt(2 / math.pi)) * (a + like(a, 0.044715) * a * a * a)
        return like(a, 0.5) * a * (like(a, 1) + vector_math.tanh(bind(inner)))
    return like(a, 0.5) * a * (like(a, 1) + vector_math.erf(bind(a * like(a, math.sqrt(0.5)))))


@emits(ir_ops.LogOp)
def _log(op: Op, a: Expr) -> Expr:
    return tirx.log(a)


@emits(ir_ops.SqrtOp)
def _sqrt(op: Op, a: Expr) -> Expr:
    return tirx.sqrt(a)


@emits(ir_ops.RsqrtOp)
def _rsqrt(op: Op, a: Expr) -> Expr:
    return tirx.Div(like(a, 1), tirx.sqrt(a))


@emits(ir_ops.ReciprocalOp)
def _reciprocal(op: Op, a: Expr) -> Expr:
    return tirx.Div(like(a, 1), a)


@emits(ir_ops.SinOp)
def _sin(op: Op, a: Expr) -> Expr:
    return tirx.sin(a)


@emits(ir_ops.CosOp)
def _cos(op: Op, a: Expr) -> Expr:
    return tirx.cos(a)


@emits(ir_ops.NegOp)
def _neg(op: Op, a: Expr) -> Expr:
    return like(a, 0) - a


@emits(ir_ops.AbsOp)
def _abs(op: Op, a: Expr) -> Expr:
    return tirx.abs(a)


@emits(ir_ops.FloorOp)
def _floor(op: Op, a: Expr) -> Expr:
    return tirx.floor(a)


@emits(ir_ops.CeilOp)
def _ceil(op: Op, a: Expr) -> Expr:
    return tirx.ceil(a)


@emits(ir_ops.CastOp)
def _cast(op: Op, a: Expr) -> Expr:
    if op.attrs.dtype is DType.BOOL:
        return as_condition(a)
    return cast(a, STORAGE[op.attrs.dtype])
