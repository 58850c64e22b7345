"""Elementwise operators of two or three operands. PyTorch's type promotion becomes explicit casts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch._ops import OpOverload, OpOverloadPacket

from ...ir import DType, Op, Value, ops
from ..context import Context, Number, promote
from ..registry import Converter, converter, register_each

aten = torch.ops.aten
Operand = Value | Number
_HUGE = 1e200  # beyond float32, within float64


def _binary(kind: type[Op]) -> Converter:
    def convert(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
        return ctx.emit(kind, ctx.operand(lhs, ctx.dtype), ctx.operand(rhs, ctx.dtype))

    return convert


def _by_overload(table: Mapping[OpOverloadPacket, type[Op]]) -> dict[OpOverload, type[Op]]:
    """Operators with a tensor and with a number on the right."""
    return {getattr(operator, name): kind for operator, kind in table.items() for name in ("Tensor", "Scalar")}


register_each(
    {
        **_by_overload({aten.mul: ops.MulOp, aten.div: ops.DivOp}),
        aten.true_divide.Tensor: ops.DivOp,
        aten.maximum.default: ops.MaximumOp,
        aten.minimum.default: ops.MinimumOp,
        aten.pow.Tensor_Tensor: ops.PowOp,
        aten.pow.Scalar: ops.PowOp,
    },
    _binary,
)


@converter(aten.pow.Tensor_Scalar)
def pow_scalar(ctx: Context, x: Value, exponent: Number) -> Value:
    """PyTorch computes some exponents without the power function, which shows at infinities and at -0."""
    base = ctx.cast(x, ctx.dtype)
    if exponent in (2, 3):
        square = ctx.emit(ops.MulOp, base, base)
        return square if exponent == 2 else ctx.emit(ops.MulOp, square, base)
    if ctx.dtype.is_floating and exponent == -2:
        return ctx.emit(ops.ReciprocalOp, ctx.emit(ops.MulOp, base, base))
    kind = _POWERS.get(exponent) if ctx.dtype.is_floating else None
    return ctx.emit(ops.PowOp, base, ctx.operand(exponent, ctx.dtype)) if kind is None else ctx.emit(kind, base)


_POWERS: dict[Number, type[Op]] = {0.5: ops.SqrtOp, -0.5: ops.RsqrtOp, -1: ops.ReciprocalOp}


def _scaled(ctx: Context, x: Operand, alpha: Number) -> Value:
    value = ctx.operand(x, ctx.dtype)
    return value if alpha == 1 else ctx.emit(ops.MulOp, value, ctx.operand(alpha, ctx.dtype))


@converter(aten.add.Tensor, aten.add.Scalar)
def add(ctx: Context, lhs: Operand, rhs: Operand, alpha: Number = 1) -> Value:
    return ctx.emit(ops.AddOp, ctx.operand(lhs, ctx.dtype), _scaled(ctx, rhs, alpha))


@converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(ctx: Context, lhs: Operand, rhs: Operand, alpha: Number = 1) -> Value:
    return ctx.emit(ops.SubOp, ctx.operand(lhs, ctx.dtype), _scaled(ctx, rhs, alpha))


@converter(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(ctx: Context, lhs: Operand, rhs: Operand, alpha: Number = 1) -> Value:
    return ctx.emit(ops.SubOp, ctx.operand(rhs, ctx.dtype), _scaled(ctx, lhs, alpha))


@converter(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_rounded(ctx: Context, lhs: Operand, rhs: Operand, rounding_mode: str | None = None) -> Value:
    if not ctx.dtype.is_floating:
        ctx.refuse("integer division; divide floating-point tensors instead")
    if rounding_mode is None:
        return ctx.emit(ops.DivOp, ctx.operand(lhs, ctx.dtype), ctx.operand(rhs, ctx.dtype))
    if rounding_mode != "floor":
        ctx.refuse(f"rounding mode {rounding_mode!r}; only 'floor' is supported")
    return _floor_divide(ctx, lhs, rhs)


def _floor_divide(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
    """The floor of the exact quotient of finite numbers.

    A quotient rounded to the operands' own precision can reach an integer from below (1.0 / 0.1 is 9.99... in float32,
    but rounds to 10). In float64 that does not happen to quotients of float32 numbers below 2^28.
    """
    if ctx.dtype is DType.F64:
        ctx.refuse("floor division of float64; use torch.floor(a / b), which rounds the quotient first")
    # A number stays in float32, as in PyTorch, however narrow the tensor is.
    lhs, rhs = (ctx.operand(x, ctx.dtype if isinstance(x, Value) else DType.F32) for x in (lhs, rhs))
    dividend, divisor = ctx.cast(lhs, DType.F64), ctx.cast(rhs, DType.F64)
    # As in PyTorch, 1 over -inf is just below 0, not -0, and what is left of an infinite dividend is NaN.
    divisor = ctx.emit(ops.ClampOp, divisor, attrs=ops.ClampOp.attrs_type(min=-_HUGE, max=_HUGE))
    quotient = ctx.emit(ops.FloorOp, ctx.emit(ops.DivOp, dividend, divisor))
    return ctx.cast(ctx.emit(ops.SubOp, quotient, ctx.emit(ops.SubOp, dividend, dividend)), ctx.dtype)


def _comparison(kind: type[Op]) -> Converter:
    def convert(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
        dtype = promote(lhs, rhs)
        return ctx.emit(kind, ctx.operand(lhs, dtype), ctx.operand(rhs, dtype))

    return convert


_COMPARISONS = {
    aten.eq: ops.EqOp,
    aten.ne: ops.NeOp,
    aten.lt: ops.LtOp,
    aten.le: ops.LeOp,
    aten.gt: ops.GtOp,
    aten.ge: ops.GeOp,
}
register_each(
    {
        **_by_overload(_COMPARISONS),
        aten.logical_and.default: ops.LogicalAndOp,
        aten.logical_or.default: ops.LogicalOrOp,
    },
    _comparison,
)


def _truth(ctx: Context, x: Operand) -> Value:
    value = ctx.operand(x, x.type.dtype if isinstance(x, Value) else DType.BOOL)
    if value.type.dtype is DType.BOOL:
        return value
    return ctx.emit(ops.NeOp, value, ctx.operand(0, value.type.dtype))


@converter(aten.logical_xor.default)
def logical_xor(ctx: Context, lhs: Value, rhs: Value) -> Value:
    return ctx.emit(ops.NeOp, _truth(ctx, lhs), _truth(ctx, rhs))


def _bitwise(kind: type[Op]) -> Converter:
    def convert(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
        if ctx.dtype is not DType.BOOL:
            ctx.refuse("only boolean tensors have bitwise operators here")
        return ctx.emit(kind, _truth(ctx, lhs), _truth(ctx, rhs))

    return convert


_BITWISE = {
    aten.__and__: ops.LogicalAndOp,
    aten.bitwise_and: ops.LogicalAndOp,
    aten.__or__: ops.LogicalOrOp,
    aten.bitwise_or: ops.LogicalOrOp,
}
register_each({**_by_overload(_BITWISE), aten.bitwise_xor.Tensor: ops.NeOp}, _bitwise)


@converter(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def where(ctx: Context, condition: Value, x: Operand, y: Operand) -> Value:
    return ctx.emit(ops.WhereOp, _truth(ctx, condition), ctx.operand(x, ctx.dtype), ctx.operand(y, ctx.dtype))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(ctx: Context, x: Value, mask: Value, value: Operand) -> Value:
    return ctx.emit(ops.WhereOp, mask, ctx.operand(value, ctx.dtype), ctx.cast(x, ctx.dtype))
