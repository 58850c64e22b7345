"""Functions of statistics and number theory: of elementary ops, or of ops that compute each element in a loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch._ops import OpOverload

from ...ir import Attrs, DType, Op, Value, ops
from ..context import Context, Number
from ..expressions import Expression
from ..registry import Converter, converter, register_each
from .series import Numbers, chebyshev, fitted, smallest_of

aten = torch.ops.aten

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
    """Derivative ``n`` of digamma: ``n!`` times zeta of ``n + 1``, with the sign of ``(-1)^(n + 1)``."""
    if not n:
        return digamma(ctx, x)
    number = Expression(ctx, ctx.cast(x, ctx.dtype))
    if n == 1:
        return _trigamma(number).value
    factorial = float(math.factorial(n)) if n <= _MOST_FACTORIAL[ctx.dtype] else math.inf
    order = ctx.expand(ctx.operand(n + 1, ctx.dtype), x.shape)
    total = Expression(ctx, ctx.emit(ops.ZetaOp, order, number.value))
    return (total * (factorial if n % 2 else -factorial)).value


_MOST_FACTORIAL = {DType.F32: 34, DType.F64: 170}  # the largest number whose factorial is finite
_TRIGAMMA = (1 / 42, -1 / 30, 1 / 6)


def _trigamma(given: Expression) -> Expression:
    """As PyTorch: by reflection below 1/2, six steps of the recurrence, and the start of the asymptotic series."""
    is_low = given < 0.5
    argument = is_low.choose(1.0 - given, given)
    sine = (given * math.pi).apply(ops.SinOp)
    reflected = -(given.number(math.pi**2) / (sine * sine))
    total = is_low.choose(reflected, 0.0)
    for _ in range(6):
        total = total + 1.0 / (argument * argument)
        argument = argument + 1.0
    inverse = 1.0 / (argument * argument)
    series = 1.0 / (argument + argument) + 1.0 + inverse * inverse.polynomial(_TRIGAMMA)
    total = total + series / argument
    return is_low.choose(-total, total)


def _stepped(kind: type[Op], attrs: Attrs | None = None) -> Converter:
    def convert(ctx: Context, x: Value | Number, y: Value | Number) -> Value:
        shape = ctx.result_type.shape
        return ctx.emit(kind, *(ctx.expand(ctx.operand(one, ctx.dtype), shape) for one in (x, y)), attrs=attrs)

    return convert


register_each(
    {
        aten.special_zeta.default: _stepped(ops.ZetaOp),
        aten.special_zeta.self_scalar: _stepped(ops.ZetaOp),
        aten.special_zeta.other_scalar: _stepped(ops.ZetaOp),
        aten.igamma.default: _stepped(ops.IncompleteGammaOp, ops.IncompleteGammaOp.attrs_type(upper=False)),
        aten.igammac.default: _stepped(ops.IncompleteGammaOp, ops.IncompleteGammaOp.attrs_type(upper=True)),
    },
    lambda convert: convert,
)


def _polynomial_overloads() -> dict[OpOverload, str]:
    """Families of orthogonal polynomials by the operators that compute them."""
    table: dict[OpOverload, str] = {}
    for family in ops.POLYNOMIALS:
        kind, _, letter = family.rpartition("_")
        packet = getattr(aten, f"special_{kind}_polynomial_{letter}")
        table |= {getattr(packet, name): family for name in ("default", "x_scalar", "n_scalar")}
    return table


register_each(
    _polynomial_overloads(), lambda family: _stepped(ops.PolynomialOp, ops.PolynomialOp.attrs_type(family=family))
)


# Cephes' ndtri: of (y - 0.5)^2 near the middle, of 1 / z for z = sqrt(-2 log y) from 2 to 8, and from 8 on.
_MIDDLE = (
    (-59.9633501014107895, 98.0010754185999661, -56.6762857469070293, 13.931260938727968, -1.23916583867381258),
    (
        *(1.0, 1.95448858338141760, 4.67627912898881538, 86.3602421390890591, -225.462687854119370),
        *(200.260212380060660, -82.0372256168333340, 15.9056225126211696, -1.18331621121330003),
    ),
)
_TAILS = (
    (
        (
            *(4.05544892305962420, 31.5251094599893867, 57.1628192246421288, 44.0805073893200835, 14.6849561928858024),
            *(2.18663306850790268, -0.140256079171354496, -0.0350424626827848203, -8.57456785154685414e-4),
        ),
        (
            *(1.0, 15.7799883256466750, 45.3907635128879211, 41.3172038254672030, 15.0425385692907504),
            *(2.50464946208309416, -0.142182922854787789, -0.0380806407691578277, -9.33259480895457427e-4),
        ),
    ),
    (
        (
            *(3.23774891776946036, 6.91522889068984212, 3.93881025292474443, 1.33303460815807542, 0.201485389549179082),
            *(1.23716634817820021e-2, 3.01581553508235416e-4, 2.65806974686737551e-6, 6.23974539184983294e-9),
        ),
        (
            *(1.0, 6.02427039364742014, 3.67983563856160859, 1.37702099489081330, 0.216236993594496636),
            *(1.34204006088543189e-2, 3.28014464682127739e-4, 2.89247864745380684e-6, 6.79019408009981274e-9),
        ),
    ),
)


def _rational(x: Expression, coefficients: tuple[Sequence[float], Sequence[float]]) -> Expression:
    numerator, denominator = coefficients
    return x.polynomial(numerator) / x.polynomial(denominator)


@converter(aten.special_ndtri.default)
def ndtri(ctx: Context, x: Value) -> Value:
    """The number below which a share of the normal distribution lies: Cephes' rational functions."""
    share = Expression(ctx, ctx.cast(x, ctx.dtype))
    is_upper = share > 1 - math.exp(-2)
    lower = is_upper.choose(1.0 - share, share)
    from_middle = lower - 0.5
    square = from_middle * from_middle
    middle = (from_middle + from_middle * (square * _rational(square, _MIDDLE))) * math.sqrt(2 * math.pi)
    z = (lower.apply(ops.LogOp) * -2.0).apply(ops.SqrtOp)
    inverse = 1.0 / z
    ratio = (z < 8.0).choose(*(_rational(inverse, coefficients) for coefficients in _TAILS))
    tail = z - z.apply(ops.LogOp) / z - inverse * ratio
    value = (lower > math.exp(-2)).choose(middle, is_upper.choose(tail, -tail))
    bounded = share.equals(0.0).choose(share.number(-math.inf), share.equals(1.0).choose(share.number(math.inf), value))
    return bounded.value


_ERFCX_MIDDLE = 3.75


@converter(aten.special_erfcx.default)
def erfcx(ctx: Context, x: Value) -> Value:
    """``exp(x^2) erfc(x)`` by a series in ``(x - 3.75) / (x + 3.75)`` (Shepherd and Laframboise 1981)."""
    return _erfcx(Expression(ctx, ctx.cast(x, ctx.dtype))).value


def _erfcx(x: Expression) -> Expression:
    size = abs(x)
    place = 1.0 - 2 * _ERFCX_MIDDLE / (size + _ERFCX_MIDDLE)
    positive = chebyshev(place, fitted(_erfcx_by_place, smallest_of(x.dtype))) / (size + size + 1.0)
    power = (x * x).apply(ops.ExpOp)
    return (x < 0.0).choose(power + power - positive, positive)


def _erfcx_by_place(t: Numbers) -> Numbers:
    x = _ERFCX_MIDDLE * (1 + t) / (1 - t)
    return torch.special.erfcx(torch.from_numpy(x)).numpy() * (1 + 2 * x)


@converter(aten.special_log_ndtr.default)
def log_ndtr(ctx: Context, x: Value) -> Value:
    """The logarithm of the normal distribution function, by `erfcx` for low numbers."""
    given = Expression(ctx, ctx.cast(x, ctx.dtype))
    scaled = given * math.sqrt(0.5)
    low = (_erfcx(-scaled) * 0.5).apply(ops.LogOp) - scaled * scaled
    high = (scaled.apply(ops.ErfcOp) * -0.5).apply(ops.Log1pOp)
    return (given < -1.0).choose(low, high).value
