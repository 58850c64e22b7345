"""Elementwise operators of one tensor."""

from __future__ import annotations

import math

import torch

from ...ir import DType, Op, Value
from ...ir.ops import (
    AbsOp,
    CeilOp,
    ClampOp,
    CosOp,
    ErfOp,
    Expm1Op,
    ExpOp,
    FloorOp,
    GeluOp,
    GeOp,
    HardSigmoidOp,
    HardSwishOp,
    LeakyReluOp,
    Log1pOp,
    LogicalNotOp,
    LogOp,
    MaximumOp,
    MinimumOp,
    MulOp,
    NegOp,
    NeOp,
    ReciprocalOp,
    ReluOp,
    RsqrtOp,
    SigmoidOp,
    SiluOp,
    SinOp,
    SqrtOp,
    TanhOp,
    WhereOp,
)
from ..context import Context, Number
from ..registry import Converter, converter, register_each

aten = torch.ops.aten


def _unary(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return ctx.emit(kind, ctx.cast(x, ctx.dtype))  # functions of integers give floating-point numbers

    return convert


register_each(
    {
        aten.relu.default: ReluOp,
        aten.sigmoid.default: SigmoidOp,
        aten.silu.default: SiluOp,
        aten.hardswish.default: HardSwishOp,
        aten.hardsigmoid.default: HardSigmoidOp,
        aten.tanh.default: TanhOp,
        aten.exp.default: ExpOp,
        aten.expm1.default: Expm1Op,
        aten.log.default: LogOp,
        aten.log1p.default: Log1pOp,
        aten.sqrt.default: SqrtOp,
        aten.rsqrt.default: RsqrtOp,
        aten.reciprocal.default: ReciprocalOp,
        aten.erf.default: ErfOp,
        aten.sin.default: SinOp,
        aten.cos.default: CosOp,
        aten.neg.default: NegOp,
        aten.abs.default: AbsOp,
    },
    _unary,
)


def _rounding(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return ctx.emit(kind, x) if x.type.dtype.is_floating else x

    return convert


register_each({aten.floor.default: FloorOp, aten.ceil.default: CeilOp}, _rounding)


@converter(aten.log2.default)
def log2(ctx: Context, x: Value) -> Value:
    return ctx.emit(MulOp, ctx.emit(LogOp, ctx.cast(x, ctx.dtype)), ctx.operand(1 / math.log(2), ctx.dtype))


@converter(aten.elu.default)
def elu(ctx: Context, x: Value, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Value:
    """scale * (x where not negative, which keeps -0, else alpha * (exp(input_scale * x) - 1))."""
    exponent = ctx.emit(MulOp, ctx.emit(MinimumOp, x, ctx.operand(0.0, ctx.dtype)), ctx.operand(input_scale, ctx.dtype))
    negative = ctx.emit(MulOp, ctx.emit(Expm1Op, exponent), ctx.operand(alpha, ctx.dtype))
    positive = ctx.emit(GeOp, x, ctx.operand(0.0, ctx.dtype))
    return ctx.emit(MulOp, ctx.emit(WhereOp, positive, x, negative), ctx.operand(scale, ctx.dtype))


@converter(aten.isnan.default)
def isnan(ctx: Context, x: Value) -> Value:
    return ctx.emit(NeOp, x, x)


@converter(aten.logical_not.default)
def logical_not(ctx: Context, x: Value) -> Value:
    return ctx.emit(LogicalNotOp, x)


@converter(aten.bitwise_not.default)
def bitwise_not(ctx: Context, x: Value) -> Value:
    if x.type.dtype is not DType.BOOL:
        ctx.refuse("only boolean tensors have bitwise operators here")
    return ctx.emit(LogicalNotOp, x)


@converter(aten.gelu.default)
def gelu(ctx: Context, x: Value, approximate: str = "none") -> Value:
    return ctx.emit(GeluOp, x, attrs=GeluOp.attrs_type(approximate=approximate))


@converter(aten.leaky_relu.default)
def leaky_relu(ctx: Context, x: Value, negative_slope: Number = 0.01) -> Value:
    return ctx.emit(LeakyReluOp, x, attrs=LeakyReluOp.attrs_type(negative_slope=float(negative_slope)))


@converter(aten.relu6.default)
def relu6(ctx: Context, x: Value) -> Value:
    return clamp(ctx, x, 0.0, 6.0)


@converter(aten.hardtanh.default)
def hardtanh(ctx: Context, x: Value, min_val: Number = -1.0, max_val: Number = 1.0) -> Value:
    return clamp(ctx, x, min_val, max_val)


@converter(aten.clamp.default, aten.clip.default)
def clamp(ctx: Context, x: Value, min: Number | None = None, max: Number | None = None) -> Value:
    bounds = ClampOp.attrs_type(
        min=-math.inf if min is None else float(min), max=math.inf if max is None else float(max)
    )
    return ctx.emit(ClampOp, ctx.cast(x, ctx.dtype), attrs=bounds)


@converter(aten.clamp_min.default)
def clamp_min(ctx: Context, x: Value, min: Number) -> Value:
    return clamp(ctx, x, min, None)


@converter(aten.clamp_max.default)
def clamp_max(ctx: Context, x: Value, max: Number) -> Value:
    return clamp(ctx, x, None, max)


@converter(aten.clamp.Tensor)
def clamp_tensor(ctx: Context, x: Value, min: Value | None = None, max: Value | None = None) -> Value:
    result = ctx.cast(x, ctx.dtype)
    if min is not None:
        result = ctx.emit(MaximumOp, result, ctx.cast(min, ctx.dtype))
    return result if max is None else ctx.emit(MinimumOp, result, ctx.cast(max, ctx.dtype))
