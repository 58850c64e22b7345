"""Functions of statistics and physics that no op has, made of elementary ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...ir import DType, Value, ops
from ..context import Context
from ..expressions import Expression
from ..registry import Converter, converter, register_each

aten = torch.ops.aten
Numbers = npt.NDArray[np.float64]

# Giles 2012, "Approximating the erfinv function": in powers of w - 2.5 for w < 5, else of sqrt(w) - 3.
_CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 2.1858087e-04, -1.25372503e-03),
    *(-4.17768164e-03, 0.246640727, 1.50140941),
)
_TAIL = (
    *(-2.00214257e-04, 1.00950558e-04, 1.34934322e-03, -3.67342844e-03, 5.73950773e-03, -7.6224613e-03),
    *(9.43887047e-03, 1.00167406, 2.83297682),
)
_SQRT_PI = math.sqrt(math.pi)

# Cephes' psi: the asymptotic series in powers of 1 / x^2.
_PSI = (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)
_FIRST_OF_SERIES = 10  # from here on the series is exact


@converter(aten.erfinv.default)
def erfinv(ctx: Context, x: Value) -> Value:
    """Giles' polynomials, accurate to float32, and two steps of Newton's method in float64."""
    y = Expression(ctx, ctx.cast(x, ctx.dtype))
    w = -((1.0 - y) * (y + 1.0)).apply(ops.LogOp)
    central, tail = w - 2.5, w.apply(ops.SqrtOp) - 3.0
    inverse = (w < 5.0).choose(central.polynomial(_CENTRAL), tail.polynomial(_TAIL)) * y
    if ctx.dtype is DType.F64:
        for _ in range(2):
            slope = (-(inverse * inverse)).apply(ops.ExpOp) * (2 / _SQRT_PI)
            inverse = inverse - (inverse.apply(ops.ErfOp) - y) / slope
    return abs(y).equals(1.0).choose(y * math.inf, inverse).value


@converter(aten.digamma.default)
def digamma(ctx: Context, x: Value) -> Value:
    """By reflection for negative numbers, the recurrence up to 10, and the asymptotic series."""
    given = Expression(ctx, ctx.cast(x, ctx.dtype))
    is_negative = given < 0.0
    argument = is_negative.choose(1.0 - given, given)
    total = argument.number(0.0)
    for _ in range(_FIRST_OF_SERIES):
        below = argument < float(_FIRST_OF_SERIES)
        total = below.choose(total - 1.0 / argument, total)
        argument = below.choose(argument + 1.0, argument)
    inverse = 1.0 / (argument * argument)
    series = inverse * inverse.polynomial(_PSI)
    value = argument.apply(ops.LogOp) - 0.5 / argument - series + total
    fraction = given - given.apply(ops.TruncOp)
    angle = fraction * math.pi
    reflected = value - math.pi / angle.apply(ops.TanOp)
    pole = given.number(math.inf).apply(ops.CopySignOp, -given)
    whole = fraction.equals(0.0).choose(given.number(math.nan), reflected)
    return given.equals(0.0).choose(pole, is_negative.choose(whole, value)).value


@converter(aten.polygamma.default)
def polygamma(ctx: Context, n: int, x: Value) -> Value:
    if n:
        ctx.refuse(f"the {n}. derivative of digamma")
    return digamma(ctx, x)


_NEAR = 8.0  # where the modified Bessel functions change from one series to the other
_DEGREE = 40


def _bessel(order: int, *, scaled: bool) -> Converter:
    """Modified Bessel functions of the first kind, divided by ``exp(|x|)`` if ``scaled``."""

    def convert(ctx: Context, x: Value) -> Value:
        given = Expression(ctx, ctx.cast(x, ctx.dtype))
        size = abs(given)
        near, far = _bessel_series(order, 1e-17 if ctx.dtype is DType.F64 else 1e-9)
        inside = _chebyshev(size * (2 / _NEAR) - 1.0, near)
        outside = _chebyshev(2 * _NEAR / size - 1.0, far) / size.apply(ops.SqrtOp)
        value = (size <= _NEAR).choose(inside * size if order else inside, outside)
        if not scaled:
            value = value * size.apply(ops.ExpOp)
        return (given < 0.0).choose(-value, value).value if order else value.value

    return convert


register_each(
    {
        aten.i0.default: _bessel(0, scaled=False),
        aten.special_modified_bessel_i0.default: _bessel(0, scaled=False),
        aten.special_i0e.default: _bessel(0, scaled=True),
        aten.special_i1.default: _bessel(1, scaled=False),
        aten.special_modified_bessel_i1.default: _bessel(1, scaled=False),
        aten.special_i1e.default: _bessel(1, scaled=True),
    },
    lambda convert: convert,
)


@functools.cache
def _bessel_series(order: int, smallest: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Chebyshev coefficients of the scaled function, up to the last one that counts.

    Those of ``f(x) / x^order`` in ``x / 4 - 1``, for x of at most 8, and those of ``f(x) sqrt(x)`` in ``16 / x - 1``.
    """

    def scaled(x: Numbers) -> Numbers:
        return (torch.special.i1e if order else torch.special.i0e)(torch.from_numpy(x)).numpy()

    def near(t: Numbers) -> Numbers:
        x = (t + 1) * _NEAR / 2
        return scaled(x) / x**order

    def far(t: Numbers) -> Numbers:
        x = 2 * _NEAR / (t + 1)
        return scaled(x) * np.sqrt(x)

    # The points at which NumPy's interpolation takes a function; its stubs want a function of single numbers.
    points = np.polynomial.chebyshev.chebpts1(_DEGREE + 1)
    found = (np.polynomial.chebyshev.chebfit(points, function(points), _DEGREE) for function in (near, far))
    first, second = (tuple(map(float, one[: np.flatnonzero(abs(one) > smallest)[-1] + 1])) for one in found)
    return first, second


def _chebyshev(t: Expression, coefficients: Sequence[float]) -> Expression:
    """The sum of Chebyshev polynomials, by Clenshaw's recurrence."""
    double = t + t
    last, before = t.number(coefficients[-1]), t.number(0.0)
    for coefficient in reversed(coefficients[1:-1]):
        last, before = double * last - before + coefficient, last
    return t * last - before + coefficients[0]
