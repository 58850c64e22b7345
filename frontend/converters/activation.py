"""Elementwise operators of one tensor."""

from __future__ import annotations

import math

import torch

from ...ir import DType, Op, Value, ops
from ..context import Context, Number
from ..expressions import Expression
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
        aten.tan.default: ops.TanOp,
        aten.asin.default: ops.AsinOp,
        aten.acos.default: ops.AcosOp,
        aten.atan.default: ops.AtanOp,
        aten.sinh.default: ops.SinhOp,
        aten.cosh.default: ops.CoshOp,
        aten.asinh.default: ops.AsinhOp,
        aten.acosh.default: ops.AcoshOp,
        aten.atanh.default: ops.AtanhOp,
        aten.erfc.default: ops.ErfcOp,
        aten.lgamma.default: ops.LgammaOp,
        aten.exp2.default: ops.Exp2Op,
        aten.neg.default: ops.NegOp,
        aten.abs.default: ops.AbsOp,
    },
    _unary,
)


def _rounding(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return ctx.emit(kind, x) if x.type.dtype.is_floating else x

    return convert


register_each(
    {
        aten.floor.default: ops.FloorOp,
        aten.ceil.default: ops.CeilOp,
        aten.trunc.default: ops.TruncOp,
        aten.round.default: ops.RoundOp,
    },
    _rounding,
)


@converter(aten.round.decimals)
def round_decimals(ctx: Context, x: Value, *, decimals: int = 0) -> Value:
    """As PyTorch: by a power of ten, which is rounded, and its inverse."""
    if not x.type.dtype.is_floating:
        return x
    power = ctx.operand(10.0 ** abs(decimals), ctx.dtype)
    there, back = (ops.MulOp, ops.DivOp) if decimals > 0 else (ops.DivOp, ops.MulOp)
    return ctx.emit(back, ctx.emit(ops.RoundOp, ctx.emit(there, x, power)), power)


def _logarithm(base: int) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        return (Expression(ctx, x).cast(ctx.dtype).apply(ops.LogOp) * (1 / math.log(base))).value

    return convert


register_each({aten.log2.default: 2, aten.log10.default: 10}, _logarithm)


@converter(aten.sign.default)
def sign(ctx: Context, x: Value) -> Value:
    """The difference of two comparisons: 0 for NaN."""
    if x.type.dtype is DType.BOOL:
        return x
    number = Expression(ctx, x)
    return ((number > 0).cast(x.type.dtype) - (number < 0).cast(x.type.dtype)).value


@converter(aten.signbit.default)
def signbit(ctx: Context, x: Value) -> Value:
    number = Expression(ctx, x)
    if x.type.dtype is DType.BOOL:
        return (number < False).value
    if not x.type.dtype.is_floating:
        return (number < 0).value
    return (number.number(1.0).apply(ops.CopySignOp, number) < 0).value


@converter(aten.isinf.default)
def isinf(ctx: Context, x: Value) -> Value:
    number = Expression(ctx, x)
    if not x.type.dtype.is_floating:
        return number.differs(number).value
    return abs(number).equals(math.inf).value


@converter(aten.elu.default)
def elu(ctx: Context, x: Value, alpha: Number = 1.0, scale: Number = 1.0, input_scale: Number = 1.0) -> Value:
    """scale * (x where not negative, which keeps -0, else alpha * (exp(input_scale * x) - 1))."""
    exponent = ctx.emit(
        ops.MulOp, ctx.emit(ops.MinimumOp, x, ctx.operand(0.0, ctx.dtype)), ctx.operand(input_scale, ctx.dtype)
    )
    negative = ctx.emit(ops.MulOp, ctx.emit(ops.Expm1Op, exponent), ctx.operand(alpha, ctx.dtype))
    positive = ctx.emit(ops.GeOp, x, ctx.operand(0.0, ctx.dtype))
    return ctx.emit(ops.MulOp, ctx.emit(ops.WhereOp, positive, x, negative), ctx.operand(scale, ctx.dtype))


@converter(aten.softshrink.default)
def softshrink(ctx: Context, x: Value, lambd: Number = 0.5) -> Value:
    number = Expression(ctx, x)
    inside = number.differs(number).choose(number, 0.0)
    below = (number < -lambd).choose(number + lambd, inside)
    return (number > lambd).choose(number - lambd, below).value


@converter(aten.angle.default)
def angle(ctx: Context, x: Value) -> Value:
    """Of real numbers: pi for negative ones, 0 for others, NaN for NaN."""
    number = Expression(ctx, ctx.cast(x, ctx.dtype))
    half_turn = (number < 0.0).choose(number.number(math.pi), 0.0)
    return number.differs(number).choose(number, half_turn).value


@converter(aten.isnan.default)
def isnan(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.NeOp, x, x)


@converter(aten.logical_not.default)
def logical_not(ctx: Context, x: Value) -> Value:
    return ctx.emit(ops.LogicalNotOp, x)


@converter(aten.bitwise_not.default)
def bitwise_not(ctx: Context, x: Value) -> Value:
    if x.type.dtype is not DType.BOOL:
        return ctx.emit(ops.BitXorOp, x, ctx.operand(255 if x.type.dtype is DType.U8 else -1, x.type.dtype))
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
