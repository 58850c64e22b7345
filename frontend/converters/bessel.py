"""Bessel functions and Airy's function: series near 0, amplitudes and phases or exponentials far from it.

Series are fitted to PyTorch's own functions in float64. Arguments of sines and cosines are rounded as PyTorch rounds
them, which decides about the result where they are large.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch

from ...ir import Value, ops
from ..context import Context
from ..expressions import Expression
from ..registry import Converter, converter, register_each
from .series import Numbers, chebyshev, fitted, smallest_of

aten = torch.ops.aten


def _numbers(function: Callable[[torch.Tensor], torch.Tensor], x: Numbers) -> Numbers:
    return function(torch.from_numpy(x)).numpy()


def _series(place: Expression, function: Callable[[Numbers], Numbers]) -> Expression:
    """A function of ``place`` in [-1, 1]."""
    return chebyshev(place, fitted(function, smallest_of(place.dtype)))


# Modified functions of the first kind ---------------------------------------------------------------------------

_NEAR = 8.0  # where they change from one series to the other
_SCALED = (torch.special.i0e, torch.special.i1e)


def _near_i(t: Numbers, order: int) -> Numbers:
    x = (t + 1) * _NEAR / 2
    return _numbers(_SCALED[order], x) / x**order


def _far_i(t: Numbers, order: int) -> Numbers:
    x = 2 * _NEAR / (t + 1)
    return _numbers(_SCALED[order], x) * np.sqrt(x)


_NEAR_I, _FAR_I = ([functools.partial(one, order=order) for order in (0, 1)] for one in (_near_i, _far_i))


def _scaled_i_near(size: Expression, order: int) -> Expression:
    """``exp(-x) I(x)`` for x from 0 to 8."""
    value = _series(size * (2 / _NEAR) - 1.0, _NEAR_I[order])
    return value * size if order else value


def _first_kind(order: int, *, scaled: bool) -> Converter:
    """Modified Bessel functions of the first kind, divided by ``exp(|x|)`` if ``scaled``."""

    def convert(ctx: Context, x: Value) -> Value:
        given = Expression(ctx, ctx.cast(x, ctx.dtype))
        size = abs(given)
        outside = _series(2 * _NEAR / size - 1.0, _FAR_I[order]) / size.apply(ops.SqrtOp)
        value = (size <= _NEAR).choose(_scaled_i_near(size, order), outside)
        if not scaled:
            value = value * size.apply(ops.ExpOp)
        return (given < 0.0).choose(-value, value).value if order else value.value

    return convert


# Modified functions of the second kind --------------------------------------------------------------------------

_SMALL = 2.0  # up to where they are a logarithm and a series
_SECOND_KIND = (torch.special.modified_bessel_k0, torch.special.modified_bessel_k1)
_FIRST_KIND = (torch.special.i0, torch.special.i1)
_SCALED_SECOND_KIND = (torch.special.scaled_modified_bessel_k0, torch.special.scaled_modified_bessel_k1)


def _near_k(t: Numbers, order: int) -> Numbers:
    """``K0 + log(x / 2) I0``, or ``x (K1 - log(x / 2) I1)``, both even functions of x."""
    x = np.sqrt((t + 1) * _SMALL**2 / 2)
    product = np.log(x / 2) * _numbers(_FIRST_KIND[order], x)
    value = _numbers(_SECOND_KIND[order], x)
    return x * (value - product) if order else value + product


def _far_k(t: Numbers, order: int) -> Numbers:
    x = 2 * _SMALL / (t + 1)
    return _numbers(_SCALED_SECOND_KIND[order], x) * np.sqrt(x)


_NEAR_K, _FAR_K = ([functools.partial(one, order=order) for order in (0, 1)] for one in (_near_k, _far_k))


def _second_kind(order: int, *, scaled: bool) -> Converter:
    """Modified Bessel functions of the second kind, multiplied by ``exp(x)`` if ``scaled``."""

    def convert(ctx: Context, x: Value) -> Value:
        given = Expression(ctx, ctx.cast(x, ctx.dtype))
        power = given.apply(ops.ExpOp)
        product = (given.apply(ops.LogOp) - math.log(2)) * (_scaled_i_near(given, order) * power)
        series = _series(given * given * (2 / _SMALL**2) - 1.0, _NEAR_K[order])
        near = product + series / given if order else series - product
        far = _series(2 * _SMALL / given - 1.0, _FAR_K[order]) / given.apply(ops.SqrtOp)
        near, far = (near * power, far) if scaled else (near, (-given).apply(ops.ExpOp) * far)
        return given.equals(0.0).choose(given.number(math.inf), (given <= _SMALL).choose(near, far)).value

    return convert


# Functions of the first and second kind -------------------------------------------------------------------------

_TURN = 5.0  # from where on they are waves
_ANGLES = (math.pi / 4, 3 * math.pi / 4)  # by which the waves are late
# Squares of the two zeros below 5, or next to it, by which the near series are divided so that they have none.
_ZEROS = ((5.78318596294678452118, 30.4712623436620863991), (14.6819706421238932572, 49.2184563216946036703))
_J = (torch.special.bessel_j0, torch.special.bessel_j1)
_Y = (torch.special.bessel_y0, torch.special.bessel_y1)


def _near_j(t: Numbers, order: int) -> Numbers:
    square = (t + 1) * _TURN**2 / 2
    first, second = _ZEROS[order]
    return _numbers(_J[order], np.sqrt(square)) / square ** (order / 2) / ((square - first) * (square - second))


def _near_y(t: Numbers, order: int) -> Numbers:
    """``Y0 - 2 / pi log(x) J0``, or ``(Y1 - 2 / pi (log(x) J1 - 1 / x)) / x``, both even functions of x."""
    x = np.sqrt((t + 1) * _TURN**2 / 2)
    product = np.log(x) * _numbers(_J[order], x) - order / x
    return (_numbers(_Y[order], x) - 2 / math.pi * product) / x**order


def _wave(t: Numbers, order: int, part: int) -> Numbers:
    """``P`` or ``Q`` of ``J + iY = sqrt(2 / (pi x)) (P + 5i / x Q) exp(i (x - angle))``."""
    x = _TURN / np.sqrt((t + 1) / 2)
    turned = (_numbers(_J[order], x) + 1j * _numbers(_Y[order], x)) * np.exp(-1j * (x - _ANGLES[order]))
    scaled = turned * np.sqrt(math.pi * x / 2)
    return scaled.imag * x / _TURN if part else scaled.real


_NEAR_J, _NEAR_Y = ([functools.partial(one, order=order) for order in (0, 1)] for one in (_near_j, _near_y))
_WAVES = [[functools.partial(_wave, order=order, part=part) for part in (0, 1)] for order in (0, 1)]


def _j_near(x: Expression, order: int) -> Expression:
    square = x * x
    first, second = _ZEROS[order]
    value = _series(square * (2 / _TURN**2) - 1.0, _NEAR_J[order]) * (square - first) * (square - second)
    return value * x if order else value


def _waves(x: Expression, order: int) -> tuple[Expression, Expression]:
    """J and Y from 5 on."""
    angle, inverse = x - _ANGLES[order], _TURN / x
    place = inverse * inverse * 2.0 - 1.0
    real, imaginary = (_series(place, part) for part in _WAVES[order])
    imaginary, scale = imaginary * inverse, math.sqrt(2 / math.pi)
    cosine, sine, root = angle.apply(ops.CosOp), angle.apply(ops.SinOp), x.apply(ops.SqrtOp)
    return (
        (real * cosine - imaginary * sine) * scale / root,
        (real * sine + imaginary * cosine) * scale / root,
    )


def _bessel_j(order: int) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        given = Expression(ctx, ctx.cast(x, ctx.dtype))
        size = abs(given)
        wave = _waves(size, order)[0]
        far = (given < 0.0).choose(-wave, wave) if order else wave
        return (size <= _TURN).choose(_j_near(given, order), far).value

    return convert


def _bessel_y(order: int) -> Converter:
    def convert(ctx: Context, x: Value) -> Value:
        given = Expression(ctx, ctx.cast(x, ctx.dtype))
        series = _series(given * given * (2 / _TURN**2) - 1.0, _NEAR_Y[order])
        product = given.apply(ops.LogOp) * _j_near(given, order)
        near = series * given + (product - 1.0 / given) * (2 / math.pi) if order else series + product * (2 / math.pi)
        value = (given <= _TURN).choose(near, _waves(given, order)[1])
        value = given.equals(0.0).choose(given.number(-math.inf), value)
        return value.value

    return convert


register_each(
    {
        aten.i0.default: _first_kind(0, scaled=False),
        aten.special_modified_bessel_i0.default: _first_kind(0, scaled=False),
        aten.special_i0e.default: _first_kind(0, scaled=True),
        aten.special_i1.default: _first_kind(1, scaled=False),
        aten.special_modified_bessel_i1.default: _first_kind(1, scaled=False),
        aten.special_i1e.default: _first_kind(1, scaled=True),
        aten.special_modified_bessel_k0.default: _second_kind(0, scaled=False),
        aten.special_modified_bessel_k1.default: _second_kind(1, scaled=False),
        aten.special_scaled_modified_bessel_k0.default: _second_kind(0, scaled=True),
        aten.special_scaled_modified_bessel_k1.default: _second_kind(1, scaled=True),
        aten.special_bessel_j0.default: _bessel_j(0),
        aten.special_bessel_j1.default: _bessel_j(1),
        aten.special_bessel_y0.default: _bessel_y(0),
        aten.special_bessel_y1.default: _bessel_y(1),
    },
    lambda convert: convert,
)

_SINC_SERIES = [(-1) ** power / math.factorial(2 * power + 1) for power in range(6, -1, -1)]


@converter(aten.special_spherical_bessel_j0.default)
def spherical_bessel_j0(ctx: Context, x: Value) -> Value:
    """``sin(x) / x``, by its power series near 0."""
    given = Expression(ctx, ctx.cast(x, ctx.dtype))
    value = (abs(given) < 0.5).choose((given * given).polynomial(_SINC_SERIES), given.apply(ops.SinOp) / given)
    return abs(given).equals(math.inf).choose(given.number(0.0), value).value


# Airy's function ------------------------------------------------------------------------------------------------

_BOUND = 2.09  # between which and its negative there is one series
_LARGEST = 103.892  # above, the function is 0
_FITTED = 100.0  # to where the decay is fitted: from there on its numbers are denormal
_ZETA, _LAST_ZETA = 2 / 3 * _BOUND**1.5, 2 / 3 * _FITTED**1.5
_CENTER, _HALF = (1 / _ZETA + 1 / _LAST_ZETA) / 2, (1 / _ZETA - 1 / _LAST_ZETA) / 2  # of what the decay depends on


def _airy_near(t: Numbers) -> Numbers:
    return _numbers(torch.special.airy_ai, _BOUND * t)


def _airy_decay(t: Numbers) -> Numbers:
    """``2 sqrt(pi) x^(1 / 4) exp(zeta) Ai(x)`` where ``zeta`` is ``2 / 3 x^(3 / 2)``."""
    zeta = 1 / (_CENTER + _HALF * t)
    x = (1.5 * zeta) ** (2 / 3)
    return _numbers(torch.special.airy_ai, x) * np.exp(zeta) * 2 * np.sqrt(math.pi * np.sqrt(x))


@functools.cache
def _airy_wave(smallest: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Series of F and G in ``1 / zeta^2``: ``sqrt(pi) (-x)^(1 / 4) Ai(x) = F sin(angle) - G / zeta cos(angle)``.

    By least squares, since both are smooth and PyTorch has one function only; of all that fit, the smallest.
    """
    degree = 20
    place = np.cos(np.linspace(0.01, math.pi - 0.04, 2000))
    zeta = _ZETA / np.sqrt((place + 1) / 2)
    x, angle = (1.5 * zeta) ** (2 / 3), zeta + math.pi / 4
    powers = np.polynomial.chebyshev.chebvander(place, degree)
    columns = np.hstack([powers * np.sin(angle)[:, None], powers * (-np.cos(angle) / zeta)[:, None]])
    wanted = _numbers(torch.special.airy_ai, -x) * np.sqrt(math.pi * np.sqrt(x))
    found = np.linalg.lstsq(columns, wanted, rcond=1e-13)[0]
    first, second = (
        tuple(map(float, one[: np.flatnonzero(abs(one) > smallest)[-1] + 1])) for one in np.split(found, 2)
    )
    return first, second


@converter(aten.special_airy_ai.default)
def airy_ai(ctx: Context, x: Value) -> Value:
    """A series near 0, a decaying exponential on the right and a wave on the left; NaN at infinity, as in PyTorch."""
    given = Expression(ctx, ctx.cast(x, ctx.dtype))
    size = abs(given)
    root = size.apply(ops.SqrtOp)
    zeta = size * 2.0 * root / 3.0
    scale = root.apply(ops.SqrtOp)
    decay = _series((1.0 / zeta - _CENTER) * (1 / _HALF), _airy_decay) * (0.5 / math.sqrt(math.pi))
    decay = decay / (scale * zeta.apply(ops.ExpOp))
    ratio, angle = _ZETA / zeta, zeta + math.pi / 4
    sine, cosine = (chebyshev(ratio * ratio * 2.0 - 1.0, one) for one in _airy_wave(smallest_of(ctx.dtype)))
    wave = sine * angle.apply(ops.SinOp) - cosine / zeta * angle.apply(ops.CosOp)
    wave = wave / math.sqrt(math.pi) / scale
    near = _series(given * (1 / _BOUND), _airy_near)
    value = (given < -_BOUND).choose(wave, (given < _BOUND).choose(near, decay))
    value = (given > _LARGEST).choose(given.number(0.0), value)
    return size.equals(math.inf).choose(given.number(math.nan), value).value
