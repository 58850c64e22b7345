"""Elementwise operators of one tensor."""

from __future__ import annotations

import math

import torch

from ...ir import DType, Op, Value, ops
from ..context import Context, Number
from ..registry import Converter, converter, register_each

aten = torch.ops.aten


def _unary(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return ctx.emit(kind, ctx.cast(x, ctx.dtype))  # functions of integers give floating-point numbers

    return convert


register_each(
    {
        aten.relu.default: ops.ReluOp,
        aten.sigmoid.default: ops.SigmoidOp,
        aten.silu.default: ops.SiluOp,
        aten.hardswish.default: ops.HardSwishOp,
        aten.hardsigmoid.default: ops.HardSigmoidOp,
        aten.tanh.default: ops.TanhOp,
        aten.exp.default: ops.ExpOp,
        aten.expm1.default: ops.Expm1Op,
        aten.log.default: ops.LogOp,
        aten.log1p.default: ops.Log1pOp,
        aten.sqrt.default: ops.SqrtOp,
        aten.rsqrt.default: ops.RsqrtOp,
        aten.reciprocal.default: ops.ReciprocalOp,
        aten.erf.default: ops.ErfOp,
        aten.sin.default: ops.SinOp,
        aten.cos.default: ops.CosOp,
        aten.neg.default: ops.NegOp,
        aten.abs.default: ops.AbsOp,
    },
    _unary,
)


def _rounding(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return ctx.emit(kind, x) if x.type.dtype.is_floating else x

    return convert


register_each({aten.floor.default: ops.FloorOp, aten.ceil.default: ops.CeilOp}, _rounding)


@converter(aten.log2.default)
def log2(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.MulOp, ctx.emit(ops.LogOp, ctx.cast(x, ctx.dtype)), ctx.operand(1 / math.log(2), ctx.dtype))


@converter(aten.elu.default)
def elu(ctx: Context, x: Value, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Value:
    """scale * (x where not negative, which keeps -0, else alpha * (exp(input_scale * x) - 1))."""
    exponent = ctx.emit(
        ops.MulOp, ctx.emit(ops.MinimumOp, x, ctx.operand(0.0, ctx.dtype)), ctx.operand(input_scale, ctx.dtype)
    )
    negative = ctx.emit(ops.MulOp, ctx.emit(ops.Expm1Op, exponent), ctx.operand(alpha, ctx.dtype))
    positive = ctx.emit(ops.GeOp, x, ctx.operand(0.0, ctx.dtype))
    return ctx.emit(ops.MulOp, ctx.emit(ops.WhereOp, positive, x, negative), ctx.operand(scale, ctx.dtype))


@converter(aten.isnan.default)
def isnan(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.NeOp, x, x)


@converter(aten.logical_not.default)
def logical_not(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.LogicalNotOp, x)


@converter(aten.bitwise_not.default)
def bitwise_not(ctx: Context, x: Value) -> Value:
    if x.type.dtype is not DType.BOOL:
        ctx.refuse("only boolean tensors have bitwise operators here")
    return ctx.emit(ops.LogicalNotOp, x)


@converter(aten.gelu.default)
def gelu(ctx: Context, x: Value, approximate: str = "none") -> Value:
    return ctx.emit(ops.GeluOp, x, attrs=ops.GeluOp.attrs_type(approximate=approximate))


@converter(aten.leaky_relu.default)
def leaky_relu(ctx: Context, x: Value, negative_slope: Number = 0.01) -> Value:
    return ctx.emit(ops.LeakyReluOp, x, attrs=ops.LeakyReluOp.attrs_type(negative_slope=float(negative_slope)))


@converter(aten.relu6.default)
def relu6(ctx: Context, x: Value) -> Value:
    return clamp(ctx, x, 0.0, 6.0)


@converter(aten.hardtanh.default)
def hardtanh(ctx: Context, x: Value, min_val: Number = -1.0, max_val: Number = 1.0) -> Value:
    return clamp(ctx, x, min_val, max_val)


@converter(aten.clamp.default, aten.clip.default)
def clamp(ctx: Context, x: Value, min: Number | None = None, max: Number | None = None) -> Value:
    bounds = ops.ClampOp.attrs_type(
        min=-math.inf if min is None else float(min), max=math.inf if max is None else float(max)
    )
    return ctx.emit(ops.ClampOp, ctx.cast(x, ctx.dtype), attrs=bounds)


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
        result = ctx.emit(ops.MaximumOp, result, ctx.cast(min, ctx.dtype))
    return result if max is None else ctx.emit(ops.MinimumOp, result, ctx.cast(max, ctx.dtype))
