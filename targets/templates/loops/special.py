"""Orthogonal polynomials, the zeta function and incomplete gamma functions, one element after another.

Polynomials follow their three-term recurrences (Abramowitz and Stegun, 22.7), and between -1 and 1 Chebyshev's the
cosines and sines that they are, from the degrees on from which PyTorch does so. Zeta is the Euler-Maclaurin formula
(Cephes' ``zeta``). The incomplete gamma functions are a series or a continued fraction (Abramowitz and Stegun, 6.5.29
and 6.5.31), and an asymptotic expansion for large parameters (DLMF 8.12), in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import IncompleteGammaOp, PolynomialOp, SteppedOp, ZetaOp
from ...machines.target import Cpu
from ..base import Buffer, Expr
from ..parallelism import shared_loop
from ..vector.builder import store, when
from ..vector.vector_math import library
from ..vector.vectors import cast, dtype_of, in_register
from .formula import writes


class _Number:
    """A number that loops change: ``value`` reads it, and is assigned to."""

    def __init__(self, value: Expr) -> None:
        self._place = T.alloc_buffer((1,), dtype_of(value))
        store(self._place, 0, value, 1)

    @property
    def value(self) -> Expr:
        return self._place[0]

    @value.setter
    def value(self, value: Expr) -> None:
        store(self._place, 0, value, 1)


def _like(value: Expr, number: float) -> Expr:
    return tirx.const(number, dtype_of(value))


def _choose(condition: Expr, value: Expr, other: Expr) -> Expr:
    return in_register(tirx.Select(condition, value, other))


def _for_each(op: SteppedOp, x: Buffer, y: Buffer, result: Buffer, function: Callable[[Expr, Expr], Expr]) -> None:
    with shared_loop((op.result.type.size,), macs=op.macs()) as (at,):
        store(result, at, function(in_register(x[at]), in_register(y[at])), 1)


# Polynomials ----------------------------------------------------------------------------------------------------

_Step = Callable[[Expr, Expr, Expr, Expr], Expr]


@dataclass(frozen=True)
class _Family:
    """``first(x)`` is the polynomial of degree 1, ``step(k, x, q, p)`` that of degree k + 1 from those of k and k - 1.

    ``ends`` are the sizes at 1 and -1, as functions of the degree; ``by_angle(n, angle)`` is the value at the cosine of
    an angle, which is used for degrees above ``last``.
    """

    first: Callable[[Expr], Expr]
    step: _Step
    ends: tuple[Callable[[Expr], Expr], Callable[[Expr], Expr]] | None = None
    by_angle: Callable[[Expr, Expr], Expr] | None = None
    last: int = 0


def _one(n: Expr) -> Expr:
    return _like(n, 1)


def _odd(n: Expr) -> Expr:
    return n + n + 1


def _chebyshev_step(k: Expr, x: Expr, q: Expr, p: Expr) -> Expr:
    return (x + x) * q - p


def _half(angle: Expr) -> Expr:
    return angle * _like(angle, 0.5)


_CHEBYSHEV = {
    "t": _Family(lambda x: x, _chebyshev_step, (_one, _one), lambda n, angle: _cos(n * angle), 6),
    "u": _Family(
        lambda x: x + x,
        _chebyshev_step,
        (lambda n: n + 1, lambda n: n + 1),
        lambda n, angle: _sin((n + 1) * angle) / _sin(angle),
        8,
    ),
    "v": _Family(
        lambda x: x + x - 1,
        _chebyshev_step,
        (_one, _odd),
        lambda n, angle: _cos((n + _like(n, 0.5)) * angle) / _cos(_half(angle)),
        8,
    ),
    "w": _Family(
        lambda x: x + x + 1,
        _chebyshev_step,
        (_odd, _one),
        lambda n, angle: _sin((n + _like(n, 0.5)) * angle) / _sin(_half(angle)),
        8,
    ),
}
_SHIFTED_LAST = {"t": 6, "u": 6, "v": 6, "w": 4}
_FAMILIES = {
    **{f"chebyshev_{kind}": family for kind, family in _CHEBYSHEV.items()},
    **{f"shifted_chebyshev_{kind}": replace(family, last=_SHIFTED_LAST[kind]) for kind, family in _CHEBYSHEV.items()},
    "hermite_h": _Family(lambda x: x + x, lambda k, x, q, p: (x + x) * q - (k + k) * p),
    "hermite_he": _Family(lambda x: x, lambda k, x, q, p: x * q - k * p),
    "laguerre_l": _Family(lambda x: 1 - x, lambda k, x, q, p: ((k + k + (1 - x)) * q - k * p) / (k + 1)),
    "legendre_p": _Family(lambda x: x, lambda k, x, q, p: ((k + k + 1) * x * q - k * p) / (k + 1), (_one, _one)),
}
_MOST_HERMITE = {"float32": 128, "float64": 512}  # above, PyTorch gives NaN
_TOO_LARGE = 2.0**63  # for PyTorch's conversion to an integer


def _cos(angle: Expr) -> Expr:
    return library("cos", angle)


def _sin(angle: Expr) -> Expr:
    return library("sin", angle)


@writes(PolynomialOp)
def polynomial(op: PolynomialOp, target: Cpu, x: Buffer, degree: Buffer, result: Buffer) -> None:
    """By the recurrence, which stops at NaN."""
    name = op.attrs.family
    family, is_shifted = _FAMILIES[name], name.startswith("shifted")

    def value(given: Expr, degree: Expr) -> Expr:
        x = in_register(given + given - 1) if is_shifted else given
        is_counted = tirx.And(degree > _like(degree, -1), degree < _like(degree, _TOO_LARGE))
        n = in_register(tirx.trunc(_choose(is_counted, degree, _like(degree, 0))))
        found = _Number(_like(x, 1))
        when(n > _like(n, 0), lambda: _write_polynomial(family, n, x, found))
        if name == "laguerre_l":
            found.value = _choose(tirx.EQ(x, _like(x, 0)), _like(x, 1), found.value)
        if name.startswith("hermite"):
            found.value = _choose(n > _like(n, _MOST_HERMITE[dtype_of(x)]), _like(x, math.nan), found.value)
        return _choose(is_counted, found.value, _like(x, 0))

    _for_each(op, x, degree, result, value)


def _write_polynomial(family: _Family, n: Expr, x: Expr, found: _Number) -> None:
    """``found`` becomes the polynomial of degree n, at least 1."""

    def follow() -> None:
        before, k = _Number(_like(x, 1)), _Number(_like(n, 1))
        found.value = family.first(x)
        is_number = found.value >= _like(x, -math.inf)
        with T.While(tirx.And(k.value < n, is_number)):
            following = in_register(family.step(k.value, x, found.value, before.value))
            before.value = found.value
            found.value = following
            k.value = k.value + 1

    if family.ends is None:
        follow()
        return
    at_one, at_minus_one, by_angle = *family.ends, family.by_angle
    rest = in_register(n - tirx.trunc(n * _like(n, 0.5)) * 2)

    def write(value: Callable[[], Expr]) -> Callable[[], None]:
        def statement() -> None:
            found.value = value()

        return statement

    def between() -> None:
        if by_angle is None:
            follow()
            return
        is_inside = tirx.And(n > _like(n, family.last), tirx.abs(x) < _like(x, 1))
        when(is_inside, write(lambda: by_angle(n, in_register(library("acos", x)))), follow)

    below = write(lambda: (1 - rest * 2) * at_minus_one(n))
    when(tirx.EQ(x, _like(x, 1)), write(lambda: at_one(n)), lambda: when(tirx.EQ(x, _like(x, -1)), below, between))


# Zeta -----------------------------------------------------------------------------------------------------------

# (2j)! / B(2j) for j from 1 on, B being Bernoulli's numbers.
_EULER_MACLAURIN = (
    *(12.0, -720.0, 30240.0, -1209600.0, 47900160.0, -1307674368000 / 691, 74724249600.0, -1067062284288000 / 3617),
    *(5109094217170944000 / 43867, -802857662698291200000 / 174611, 14101100039391805440000 / 77683),
    -1693824136731743669452800000 / 236364091,
)
_ROUNDING = 2.0**-53
_DIRECT = 9  # terms that are added up at least, and up to where


@writes(ZetaOp)
def zeta(op: ZetaOp, target: Cpu, x: Buffer, q: Buffer, result: Buffer) -> None:
    """Some terms of the sum, and Euler and Maclaurin's formula for the others; in float64."""
    dtype = dtype_of(x[0])

    def value(given: Expr, start: Expr) -> Expr:
        x, q = (in_register(cast(one, "float64")) for one in (given, start))
        infinity, nan = _like(x, math.inf), _like(x, math.nan)
        is_negative, is_whole = q <= _like(q, 0), tirx.EQ(q, tirx.floor(q))
        found = _choose(tirx.And(is_negative, tirx.NE(x, tirx.floor(x))), nan, _like(x, 0))
        found = _choose(tirx.And(is_negative, is_whole), infinity, found)
        found = _choose(x < _like(x, 1), nan, found)
        total = _Number(_choose(tirx.EQ(x, _like(x, 1)), infinity, found))
        when(tirx.EQ(total.value, _like(x, 0)), lambda: _write_zeta(x, q, total))
        return cast(total.value, dtype)

    _for_each(op, x, q, result, value)


def _write_zeta(x: Expr, q: Expr, total: _Number) -> None:
    """``total`` becomes the sum, where neither x nor q forbid it."""
    term, place = _Number(_like(x, 0)), _Number(q)
    total.value = library("pow", q, -x)
    count, is_done = _Number(tirx.const(0, "int32")), _Number(tirx.const(0, "int32"))

    def finish() -> None:
        is_done.value = tirx.const(1, "int32")

    is_first = tirx.Or(count.value < _DIRECT, place.value <= _like(x, _DIRECT))
    with T.While(tirx.And(tirx.EQ(is_done.value, 0), is_first)):
        count.value = count.value + 1
        place.value = place.value + 1
        term.value = library("pow", place.value, -x)
        total.value = total.value + term.value
        limit = in_register(total.value * _like(x, _ROUNDING))
        when(tirx.And(term.value < limit, term.value > -limit), finish)

    def rest() -> None:
        total.value = total.value + term.value * place.value / (x - 1) - term.value * _like(x, 0.5)
        product = _Number(_like(x, 1))
        for index, factor in enumerate(_EULER_MACLAURIN):
            when(tirx.EQ(is_done.value, 0), partial(correct, product, 2 * index, factor))

    def correct(product: _Number, index: int, factor: float) -> None:
        product.value = product.value * (x + index)
        term.value = term.value / place.value
        change = in_register(product.value * term.value / _like(x, factor))
        total.value = total.value + change
        when(tirx.abs(change / total.value) < _like(x, _ROUNDING), finish)
        product.value = product.value * (x + (index + 1))
        term.value = term.value / place.value

    when(tirx.EQ(is_done.value, 0), rest)


# Incomplete gamma functions -------------------------------------------------------------------------------------

_MOST_STEPS = 2000
_LARGE = 1e4  # parameters from which on the asymptotic expansion is used
_TINY = 1e-300  # instead of 0, by which nothing can be divided
# Of the expansion's terms 0 and 1 in powers of eta, the highest first; where more would count, the result is 0 or 1.
_TERMS = (
    (6.6137566137566138e-7, 3.9192631785224378e-5, -1.7875514403292181e-4, 1 / 2835, 1 / 864, -2 / 135, 1 / 12, -1 / 3),
    (-4.0187757201646091e-7, 1 / 4860, -77 / 77760, 1 / 378, -1 / 288, -1 / 540),
)
_NEAR = 0.01  # where log(1 + s) - s is a power series


@writes(IncompleteGammaOp)
def incomplete_gamma(op: IncompleteGammaOp, target: Cpu, a: Buffer, x: Buffer, result: Buffer) -> None:
    """That of both integrals which does not cancel is computed, and the other one from it; in float64."""
    dtype, is_upper = dtype_of(a[0]), op.attrs.upper

    def value(parameter: Expr, bound: Expr) -> Expr:
        a, x = (in_register(cast(one, "float64")) for one in (parameter, bound))
        zero, one, infinity = (_like(x, number) for number in (0, 1, math.inf))
        found = _Number(_like(x, math.nan))

        def use(upper: bool, integral: Callable[[Expr, Expr], Expr]) -> Callable[[], None]:
            def write() -> None:
                computed = integral(a, x)
                found.value = computed if upper is is_upper else one - computed

            return write

        def by_steps() -> None:
            by_fraction, by_series = use(True, _gamma_fraction), use(False, _gamma_series)
            is_small = tirx.And(x <= _like(x, 1.1), a <= one) if is_upper else False
            when(is_small, use(True, _gamma_small), lambda: when(tirx.And(x > one, x > a), by_fraction, by_series))

        def by_expansion() -> None:
            found.value = _gamma_expansion(a, x, 1.0 if is_upper else -1.0)

        def at_bounds() -> None:
            nan = _like(x, math.nan)
            lower = _choose(tirx.EQ(a, infinity), _choose(tirx.EQ(x, infinity), nan, zero), one)
            lower = _choose(tirx.EQ(x, zero), zero, lower)
            lower = _choose(tirx.EQ(a, zero), _choose(x > zero, one, nan), lower)
            found.value = one - lower if is_upper else lower

        def defined() -> None:
            is_bound = tirx.Or(tirx.Or(tirx.EQ(a, zero), tirx.EQ(x, zero)), tirx.Or(a >= infinity, x >= infinity))
            when(is_bound, at_bounds, lambda: when(a > _like(a, _LARGE), by_expansion, by_steps))

        when(tirx.Or(a < zero, x < zero), lambda: None, defined)
        return cast(found.value, dtype)

    _for_each(op, a, x, result, value)


def _gamma_factor(a: Expr, x: Expr) -> Expr:
    """x^a exp(-x) / gamma(a)."""
    return in_register(library("exp", in_register(a * library("log", x) - x - library("lgamma", a))))


def _repeat(step: Callable[[Expr], Expr]) -> None:
    """``step(count)`` for counts from 1 on, until it says that it has arrived."""
    count, is_done = _Number(tirx.const(0, "int32")), _Number(tirx.const(0, "int32"))
    with T.While(tirx.And(tirx.EQ(is_done.value, 0), count.value < _MOST_STEPS)):
        count.value = count.value + 1
        is_done.value = tirx.Cast("int32", step(in_register(tirx.Cast("float64", count.value))))


def _gamma_series(a: Expr, x: Expr) -> Expr:
    """The lower integral by powers of x, for x of at most a or 1."""
    term, total = _Number(_like(x, 1)), _Number(_like(x, 1))

    def step(count: Expr) -> Expr:
        term.value = term.value * x / (a + count)
        total.value = total.value + term.value
        return term.value <= total.value * _like(x, _ROUNDING)

    _repeat(step)
    return in_register(total.value * _gamma_factor(a, x) / a)


def _gamma_small(a: Expr, x: Expr) -> Expr:
    """The upper integral for small a and x, where it is far below 1 (DLMF 8.7.3)."""
    power, total = _Number(_like(x, 1)), _Number(_like(x, 0))

    def step(count: Expr) -> Expr:
        power.value = power.value * x / -count
        term = in_register(power.value / (a + count))
        total.value = total.value + term
        return tirx.abs(term) <= tirx.abs(total.value) * _like(x, _ROUNDING)

    _repeat(step)
    exponent = in_register(a * library("log", x))
    first = library("expm1", in_register(exponent - library("lgamma", in_register(a + 1))))
    factor = library("exp", in_register(exponent - library("lgamma", a)))
    return in_register(-first - factor * total.value)


def _gamma_fraction(a: Expr, x: Expr) -> Expr:
    """The upper integral by a continued fraction, for x of more than a and 1 (Lentz's method)."""
    denominator = _Number(x + 1 - a)
    c, d = _Number(_like(x, 1 / _TINY)), _Number(1 / denominator.value)
    fraction = _Number(d.value)

    def step(count: Expr) -> Expr:
        numerator = in_register(count * (a - count))
        denominator.value = denominator.value + 2
        below = in_register(numerator * d.value + denominator.value)
        d.value = 1 / _choose(tirx.abs(below) < _like(x, _TINY), _like(x, _TINY), below)
        above = in_register(denominator.value + numerator / c.value)
        c.value = _choose(tirx.abs(above) < _like(x, _TINY), _like(x, _TINY), above)
        change = in_register(c.value * d.value)
        fraction.value = fraction.value * change
        return tirx.abs(change - 1) <= _like(x, 2 * _ROUNDING)

    _repeat(step)
    return in_register(fraction.value * _gamma_factor(a, x))


def _gamma_expansion(a: Expr, x: Expr, sign: float) -> Expr:
    """One of the integrals for large a, the upper one where ``sign`` is 1, the lower one where it is -1."""
    distance = in_register((x - a) / a)
    series = _polynomial(distance, [(-1) ** power / power for power in range(10, 1, -1)])
    is_near = tirx.abs(distance) < _like(x, _NEAR)
    far = in_register(distance - library("log1p", distance))
    half_square = _choose(is_near, series * distance * distance, far)
    size = in_register(tirx.sqrt(half_square * 2))
    eta = _choose(distance < _like(x, 0), -size, size)
    first, second = (_polynomial(eta, coefficients) for coefficients in _TERMS)
    scaled = library("exp", in_register(-a * half_square)) / tirx.sqrt(a * _like(a, 2 * math.pi))
    share = _choose(size < _like(x, 1), scaled * (first + second / a), _like(x, 0))
    tail = library("erfc", in_register(eta * tirx.sqrt(a * _like(a, 0.5)) * _like(x, sign)))
    return in_register(tail * _like(x, 0.5) + share * _like(x, sign))


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """By Horner's scheme, the highest power first."""
    value = _like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = in_register(value * x + _like(x, coefficient))
    return value
