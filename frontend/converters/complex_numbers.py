"""Complex numbers as pairs of real ones: what operators that take or return them make of both parts.

Operators that move elements, and linear ones, treat both parts as they treat real numbers.
"""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map_only

from ...ir import Value, ops
from ..context import Context, Number
from ..expressions import Expression
from ..registry import CONVERTERS, Argument, Complex, ComplexConverter, ConvertedParts, Converter, complex_converter
from . import activation, data_movement, identity, reduction  # noqa: F401  (their converters are used below)
from .windows import concat

aten = torch.ops.aten
Operand = Value | Complex | Number | complex


def _each_part(convert: Converter) -> ComplexConverter:
    """Of both parts, what the operator makes of real numbers."""

    def converted(ctx: Context, *args: Argument, **options: Argument) -> ConvertedParts:
        real: Argument = convert(ctx, *tree_map_only(Complex, lambda one: one.real, args), **options)
        imaginary: Argument = convert(ctx, *tree_map_only(Complex, lambda one: one.imaginary, args), **options)
        if isinstance(real, tuple):
            return tuple(Complex(*parts) for parts in zip(real, imaginary, strict=True))
        return Complex(real, imaginary)

    return converted


for _overload in (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.unbind.int,
    aten.flip.default,
    aten.roll.default,
    aten.constant_pad_nd.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.mean.default,
    aten.mean.dim,
    aten.neg.default,
):
    complex_converter(_overload)(_each_part(CONVERTERS[_overload]))


def _parts(ctx: Context, x: Operand) -> tuple[Expression, Expression | None]:
    """Real and imaginary part, None if there is none, in the element type of the result's parts."""
    if isinstance(x, Complex):
        return Expression(ctx, ctx.cast(x.real, ctx.dtype)), Expression(ctx, ctx.cast(x.imaginary, ctx.dtype))
    if isinstance(x, complex):
        real, imaginary = (Expression(ctx, ctx.operand(part, ctx.dtype)) for part in (x.real, x.imag))
        return real, imaginary
    return Expression(ctx, ctx.operand(x, ctx.dtype)), None


def _pair(ctx: Context, real: Expression, imaginary: Expression) -> Complex:
    """Both parts in the shape of the result."""
    shape = ctx.result_type.shape
    return Complex(ctx.expand(real.value, shape), ctx.expand(imaginary.value, shape))


@complex_converter(aten.view_as_real.default)
def view_as_real(ctx: Context, x: Complex) -> Value:
    parts = [ctx.reshape(part, (*part.shape, 1)) for part in (x.real, x.imaginary)]
    return concat(ctx, parts, len(x.real.shape))


@complex_converter(aten.view_as_complex.default)
def view_as_complex(ctx: Context, x: Value) -> Complex:
    shape, last = x.shape[:-1], len(x.shape) - 1
    real, imaginary = (ctx.reshape(ctx.slice(x, last, part, part + 1), shape) for part in range(2))
    return Complex(real, imaginary)


@complex_converter(aten.complex.default)
def complex_(ctx: Context, real: Value, imaginary: Value) -> Complex:
    return _pair(ctx, Expression(ctx, real), Expression(ctx, imaginary))


@complex_converter(aten.polar.default)
def polar(ctx: Context, radius: Value, angle: Value) -> Complex:
    length, direction = Expression(ctx, radius), Expression(ctx, angle)
    return _pair(ctx, length * direction.apply(ops.CosOp), length * direction.apply(ops.SinOp))


@complex_converter(aten._to_copy.default, aten.to.dtype)
def to(ctx: Context, x: Value | Complex, *args: object, **options: object) -> Value | Complex:
    """From real numbers, to them, or to other parts."""
    dtype = next((one for one in (*args, *options.values()) if isinstance(one, torch.dtype)), torch.complex64)
    real, imaginary = _parts(ctx, x)
    if not dtype.is_complex:
        return real.value
    return Complex(real.value, imaginary.value if imaginary else ctx.full(0, real.value.type))


@complex_converter(aten._conj.default, aten._conj_physical.default)
def conjugate(ctx: Context, x: Complex) -> Complex:
    return Complex(x.real, (-Expression(ctx, x.imaginary)).value)


@complex_converter(aten.abs.default)
def absolute(ctx: Context, x: Complex) -> Value:
    return Expression(ctx, x.real).apply(ops.HypotOp, Expression(ctx, x.imaginary)).value


@complex_converter(aten.angle.default)
def angle(ctx: Context, x: Complex) -> Value:
    return Expression(ctx, x.imaginary).apply(ops.Atan2Op, Expression(ctx, x.real)).value


@complex_converter(aten.add.Tensor, aten.add.Scalar)
def add(ctx: Context, x: Operand, y: Operand, alpha: Number = 1) -> Complex:
    (a, b), (c, d) = _parts(ctx, x), _parts(ctx, y)
    none = a.number(0.0)
    return _pair(ctx, a + c * alpha, (b or none) + (d or none) * alpha)


@complex_converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(ctx: Context, x: Operand, y: Operand, alpha: Number = 1) -> Complex:
    return add(ctx, x, y, -alpha)


@complex_converter(aten.mul.Tensor, aten.mul.Scalar)
def mul(ctx: Context, x: Operand, y: Operand) -> Complex:
    (a, b), (c, d) = _parts(ctx, x), _parts(ctx, y)
    if b is None or d is None:
        return _pair(ctx, a * c, (b or a) * (d or c))
    return _pair(ctx, a * c - b * d, a * d + b * c)


@complex_converter(aten.div.Tensor, aten.div.Scalar)
def div(ctx: Context, x: Operand, y: Operand) -> Complex:
    """By a real number, each part; else times the conjugate, over the squared absolute value."""
    (a, b), (c, d) = _parts(ctx, x), _parts(ctx, y)
    if d is None:
        return _pair(ctx, a / c, (b or a) / c)
    square, imaginary = c * c + d * d, b or a.number(0.0)
    return _pair(ctx, (a * c + imaginary * d) / square, (imaginary * c - a * d) / square)
