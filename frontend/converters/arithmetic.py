"""Elementwise operators of two or three operands. PyTorch's type promotion becomes explicit casts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch._ops import OpOverload, OpOverloadPacket

from ...ir import DType, Op, Value, ops
from ..context import Context, Number, promote
from ..expressions import Expression
from ..registry import Converted, Converter, converter, register_each

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
        aten.atan2.default: ops.Atan2Op,
        aten.hypot.default: ops.HypotOp,
        aten.copysign.Tensor: ops.CopySignOp,
        aten.copysign.Scalar: ops.CopySignOp,
        aten.nextafter.default: ops.NextAfterOp,
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
    if rounding_mode == "floor":
        return floor_divide(ctx, lhs, rhs)
    if rounding_mode is None or ctx.dtype.is_floating:
        quotient = ctx.emit(ops.DivOp, ctx.operand(lhs, ctx.dtype), ctx.operand(rhs, ctx.dtype))
        return quotient if rounding_mode is None else ctx.emit(ops.TruncOp, quotient)
    return ctx.emit(ops.QuotientOp, ctx.operand(lhs, ctx.dtype), ctx.operand(rhs, ctx.dtype))


@converter(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
    if ctx.dtype is DType.F64:
        return _exact_floor_divide(*_operands(ctx, lhs, rhs)).value
    if ctx.dtype.is_floating:
        return _floor_divide(ctx, lhs, rhs)
    dividend, divisor = _operands(ctx, lhs, rhs)
    quotient = dividend.apply(ops.QuotientOp, divisor)
    if ctx.dtype is DType.U8:
        return quotient.value
    rest = dividend.apply(ops.IntegerRemainderOp, divisor)
    return (quotient - _is_opposite(rest, divisor).cast(ctx.dtype)).value


def _operands(ctx: Context, lhs: Operand, rhs: Operand) -> tuple[Expression, Expression]:
    return Expression(ctx, ctx.operand(lhs, ctx.dtype)), Expression(ctx, ctx.operand(rhs, ctx.dtype))


def _is_opposite(rest: Expression, divisor: Expression) -> Expression:
    """Whether a remainder of a quotient rounded towards zero is not that of one rounded down."""
    return ((rest < 0) & (divisor > 0)) | ((rest > 0) & (divisor < 0))


def _floor_divide(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
    """The floor of the exact quotient of finite numbers.

    A quotient rounded to the operands' own precision can reach an integer from below (1.0 / 0.1 is 9.99... in float32,
    but rounds to 10). In float64 that does not happen to quotients of float32 numbers below 2^28.
    """
    # A number stays in float32, as in PyTorch, however narrow the tensor is.
    lhs, rhs = (ctx.operand(x, ctx.dtype if isinstance(x, Value) else DType.F32) for x in (lhs, rhs))
    dividend, divisor = ctx.cast(lhs, DType.F64), ctx.cast(rhs, DType.F64)
    # As in PyTorch, 1 over -inf is just below 0, not -0, and what is left of an infinite dividend is NaN.
    divisor = ctx.emit(ops.ClampOp, divisor, attrs=ops.ClampOp.attrs_type(min=-_HUGE, max=_HUGE))
    quotient = ctx.emit(ops.FloorOp, ctx.emit(ops.DivOp, dividend, divisor))
    return ctx.cast(ctx.emit(ops.SubOp, quotient, ctx.emit(ops.SubOp, dividend, dividend)), ctx.dtype)


def _exact_floor_divide(dividend: Expression, divisor: Expression) -> Expression:
    """By the exact remainder, as PyTorch does it."""
    rest = dividend.apply(ops.FmodOp, divisor)
    exact = (dividend - rest) / divisor
    lower = _is_opposite(rest, divisor).choose(exact - 1.0, exact)
    down = lower.apply(ops.FloorOp)
    nearest = (lower - down > 0.5).choose(down + 1.0, down)
    quotient = dividend / divisor
    return divisor.equals(0.0).choose(
        quotient, lower.equals(0.0).choose(lower.number(0.0).apply(ops.CopySignOp, quotient), nearest)
    )


@converter(aten.fmod.Tensor, aten.fmod.Scalar)
def fmod(ctx: Context, x: Operand, divisor: Operand) -> Value:
    dividend, by = _operands(ctx, x, divisor)
    return dividend.apply(ops.FmodOp if ctx.dtype.is_floating else ops.IntegerRemainderOp, by).value


@converter(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def remainder(ctx: Context, x: Operand, divisor: Operand) -> Value:
    """With the sign of the divisor, where `fmod` has that of the dividend."""
    rest, by = Expression(ctx, fmod(ctx, x, divisor)), Expression(ctx, ctx.operand(divisor, ctx.dtype))
    return rest.value if ctx.dtype is DType.U8 else _is_opposite(rest, by).choose(rest + by, rest).value


def _extremum_of_numbers(compare: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, y: Value) -> Value:
        """NaN only where both are; the first of equal ones, which may be 0 and -0."""
        a, b = _operands(ctx, x, y)
        return (a.apply(compare, b) | b.differs(b)).choose(a, b).value

    return convert


register_each({aten.fmax.default: ops.GeOp, aten.fmin.default: ops.LeOp}, _extremum_of_numbers)


@converter(aten.ldexp.Tensor)
def ldexp(ctx: Context, x: Value, exponent: Value) -> Value:
    number, power = _operands(ctx, x, exponent)
    return (number * power.apply(ops.Exp2Op)).value


_APART = 64  # powers of two by which numbers are moved that are too small or too large to be divided


@converter(aten.frexp.Tensor)
def frexp(ctx: Context, x: Value) -> Converted:
    """A mantissa from 1/2 to 1 and a power of two: by the logarithm, and one step where that is rounded."""
    given = Expression(ctx, ctx.cast(x, ctx.dtype))
    if ctx.dtype not in (DType.F32, DType.F64):
        ctx.refuse("mantissas of 16-bit numbers; cast to float32")
    size = abs(given)
    is_number = (size > 0.0) & (size < math.inf)
    is_small, is_large = size < 2.0**-_APART, size >= 2.0**_APART
    factor = is_small.choose(given.number(2.0**_APART), is_large.choose(given.number(2.0**-_APART), 1.0))
    moved = is_small.choose(given.number(float(_APART)), is_large.choose(given.number(-float(_APART)), 0.0))
    near = is_number.choose(size * factor, 1.0)
    power = (near.apply(ops.LogOp) * (1 / math.log(2))).apply(ops.FloorOp) + 1.0
    mantissa = near * (-power).apply(ops.Exp2Op)
    is_above, is_below = mantissa >= 1.0, mantissa < 0.5
    mantissa = is_above.choose(mantissa * 0.5, is_below.choose(mantissa * 2.0, mantissa))
    power = is_above.choose(power + 1.0, is_below.choose(power - 1.0, power)) - moved
    exponent = is_number.choose(power, 0.0).cast(DType.I32)
    return is_number.choose(mantissa.apply(ops.CopySignOp, given), given).value, exponent.value


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


def _bitwise(kinds: tuple[type[Op], type[Op]]) -> Converter:
    def convert(ctx: Context, lhs: Operand, rhs: Operand) -> Value:
        on_booleans, on_integers = kinds
        if ctx.dtype is DType.BOOL:
            return ctx.emit(on_booleans, _truth(ctx, lhs), _truth(ctx, rhs))
        return ctx.emit(on_integers, ctx.operand(lhs, ctx.dtype), ctx.operand(rhs, ctx.dtype))

    return convert


def _bitwise_overloads(
    table: Mapping[OpOverloadPacket, tuple[type[Op], type[Op]]],
) -> dict[OpOverload, tuple[type[Op], type[Op]]]:
    names = ("Tensor", "Scalar", "Scalar_Tensor")
    return {
        getattr(packet, name): kinds for packet, kinds in table.items() for name in names if name in packet.overloads()
    }


_AND, _OR = (ops.LogicalAndOp, ops.BitAndOp), (ops.LogicalOrOp, ops.BitOrOp)
_XOR = (ops.NeOp, ops.BitXorOp)
register_each(
    _bitwise_overloads(
        {
            aten.__and__: _AND,
            aten.bitwise_and: _AND,
            aten.__or__: _OR,
            aten.bitwise_or: _OR,
            aten.__xor__: _XOR,
            aten.bitwise_xor: _XOR,
        }
    ),
    _bitwise,
)


def _shift(left: bool) -> Converter:
    def convert(ctx: Context, x: Operand, count: Operand) -> Value:
        if ctx.dtype.is_floating:
            ctx.refuse("shifts of floating-point numbers; multiply by a power of two")
        number, by = _operands(ctx, x, count)
        return number.apply(ops.ShiftLeftOp if left else ops.ShiftRightOp, by).value

    return convert


_SHIFTS = {
    aten.__lshift__: True,
    aten.bitwise_left_shift: True,
    aten.__rshift__: False,
    aten.bitwise_right_shift: False,
}
register_each(
    {
        getattr(packet, name): left
        for packet, left in _SHIFTS.items()
        for name in ("Tensor", "Scalar", "Tensor_Scalar", "Scalar_Tensor")
        if name in packet.overloads()
    },
    _shift,
)


@converter(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def where(ctx: Context, condition: Value, x: Operand, y: Operand) -> Value:
    return ctx.emit(ops.WhereOp, _truth(ctx, condition), ctx.operand(x, ctx.dtype), ctx.operand(y, ctx.dtype))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(ctx: Context, x: Value, mask: Value, value: Operand) -> Value:
    return ctx.emit(ops.WhereOp, mask, ctx.operand(value, ctx.dtype), ctx.cast(x, ctx.dtype))
