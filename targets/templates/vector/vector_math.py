"""Elementary functions on float32 vectors, as plain arithmetic, and by calls to the C library on float64 ones.

TVM's own ``exp``, ``tanh`` and ``erf`` turn into one libm call for each lane. These take about twenty instructions for
a whole vector. They are written while a PrimFunc is being built (intermediate values are bound by statements), and
work for any number of lanes.

Sources of the coefficients: ``exp`` and ``log``: Cephes ``expf`` and ``logf`` (S. L. Moshier, netlib.org/cephes);
``tanh`` and ``erf``: the rational minimax approximations of Eigen (``generic_fast_tanh_float``,
``generic_fast_erf_float``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Expr
from .builder import constant, load, loop, store
from .vectors import dtype_of, in_register, lanes_of

_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375  # 11 bits: products with an integer below 2^13 are exact
_LN2_LOW = -2.12194440e-4
_EXP_SMALLEST = -104.0  # exp(-104) rounds to 0, also as a denormal number
_EXP2_SMALLEST, _EXP2_LARGEST = -150.0, 128.0  # 2^-150 rounds to 0, 2^128 is infinite
_EXP_LARGEST = 89.0  # exp(89) is infinite in float32
_EXP_SMALLEST_NORMAL = -86.6  # below, the shortcut of exp_nonpositive would leave the range of normal numbers
ROUNDING = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum
_EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)

_EXPM1_SMALLEST = -50.0  # exp(-50) - 1 rounds to -1
_EXPM1_SMALL = 2.0**-25  # nearer to zero, exp(x) - 1 rounds to x

_LOG_DENORMAL = 23  # denormal numbers times 2^23 are normal ones
_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)

_TANH_LARGEST = 7.90531110763549805
_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)

_ERF_LARGEST = 4.0
_ERF_NUMERATOR = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_DENOMINATOR = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def minimum(value: Expr, bound: float) -> Expr:
    """``min(value, bound)`` for each lane; a NaN stays one."""
    limit = constant(bound, lanes_of(value))
    return tirx.Select(limit < value, limit, value)


def maximum(value: Expr, bound: float) -> Expr:
    """``max(value, bound)`` for each lane; a NaN stays one."""
    limit = constant(bound, lanes_of(value))
    return tirx.Select(limit > value, limit, value)


def per_lane(function: Callable[..., Expr], *vectors: Expr) -> Expr:
    """``function(*numbers)`` for each lane, one after another: for what there are no vector instructions for."""
    lanes = lanes_of(vectors[0])
    if lanes == 1:
        return function(*map(in_register, vectors))
    buffers = [T.alloc_buffer((lanes,), dtype_of(vector, 1)) for vector in vectors]
    for buffer, vector in zip(buffers, vectors, strict=True):
        store(buffer, 0, vector, lanes)
    result = T.alloc_buffer((lanes,), dtype_of(vectors[0], 1))
    with loop(lanes) as lane:
        store(result, lane, function(*(buffer[lane] for buffer in buffers)), 1)
    return load(result, 0, lanes)


def library(name: str, *vectors: Expr) -> Expr:
    """A function of the C library, called for each lane; its name without the ``f`` for float32."""
    dtype = dtype_of(vectors[0], 1)
    symbol = f"{name}f" if dtype == "float32" else name
    return per_lane(lambda *numbers: tirx.call_pure_extern(dtype, symbol, *numbers), *vectors)


def _by_library_in_float64(function: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """What follows is for float32; the C library has the function of that name for float64."""

    def either(value: Expr) -> Expr:
        return library(function.__name__, value) if dtype_of(value, 1) == "float64" else function(value)

    return either


@_by_library_in_float64
def exp(value: Expr) -> Expr:
    """``e`` to the power of each lane, within 2 units in the last place from -inf (0) to inf, denormals included."""
    lanes = lanes_of(value)
    x = in_register(value)
    x = in_register(minimum(x, _EXP_LARGEST))
    x = in_register(maximum(x, _EXP_SMALLEST))
    exponent = in_register(_round(x * constant(_LOG2_E, lanes)))
    return _scaled(_exp_mantissa(x, exponent), exponent)


@_by_library_in_float64
def exp2(value: Expr) -> Expr:
    """2 to the power of each lane, within 2 units in the last place, denormals included."""
    lanes = lanes_of(value)
    x = in_register(value)
    x = in_register(minimum(x, _EXP2_LARGEST))
    x = in_register(maximum(x, _EXP2_SMALLEST))
    exponent = in_register(_round(x))
    r = in_register((x - exponent) * constant(math.log(2), lanes))
    mantissa = _polynomial(r, _EXP_POLYNOMIAL) * (r * r) + r + constant(1.0, lanes)
    return _scaled(mantissa, exponent)


def exp_nonpositive(value: Expr) -> Expr:
    """``exp`` for lanes that are at most 0, in two thirds of the instructions; results below 2^-125 are 0.

    What softmax needs: the exponent is rounded and added to that of the mantissa with integer arithmetic.
    """
    lanes = lanes_of(value)
    integer = dtype_of(value).replace("float", "int")
    x = in_register(value)
    shifted = in_register(x * constant(_LOG2_E, lanes) + constant(ROUNDING, lanes))
    exponent = in_register(shifted - constant(ROUNDING, lanes))
    power = T.shift_left(T.reinterpret(integer, shifted), constant(23, lanes, "int32"))
    bits = T.reinterpret(integer, _exp_mantissa(x, exponent)) + power
    result = T.reinterpret(dtype_of(x), bits)
    return in_register(tirx.Select(x < constant(_EXP_SMALLEST_NORMAL, lanes), constant(0.0, lanes), result))


@_by_library_in_float64
def log(value: Expr) -> Expr:
    """Natural logarithm of each lane, within 2 units in the last place, denormal numbers included.

    ``x = m * 2^e`` for ``m`` from ``sqrt(1/2)`` to ``sqrt(2)``; ``log m`` is a polynomial of ``m - 1``.
    """
    lanes = lanes_of(value)
    integer = dtype_of(value).replace("float", "int")
    x, zero = in_register(value), constant(0.0, lanes)
    is_denormal = x < constant(2.0**-126, lanes)
    normal = in_register(tirx.Select(is_denormal, x * constant(2.0**_LOG_DENORMAL, lanes), x))
    bits = in_register(T.reinterpret(integer, normal))
    shifted = T.shift_right(bits, constant(23, lanes, "int32")) - constant(126, lanes, "int32")
    power = in_register(T.cast(shifted, dtype_of(value)))
    power = in_register(tirx.Select(is_denormal, power - constant(float(_LOG_DENORMAL), lanes), power))
    of_half = (bits & constant(0x007FFFFF, lanes, "int32")) | constant(0x3F000000, lanes, "int32")
    half = in_register(T.reinterpret(dtype_of(value), of_half))  # from 1/2 to 1
    is_small = half < constant(math.sqrt(0.5), lanes)
    e = in_register(tirx.Select(is_small, power - constant(1.0, lanes), power))
    z = in_register(tirx.Select(is_small, half + half, half) - constant(1.0, lanes))
    square = in_register(z * z)
    tail = in_register(_polynomial(z, _LOG_POLYNOMIAL) * z * square + e * constant(_LN2_LOW, lanes))
    result = in_register(tail - constant(0.5, lanes) * square + z + e * constant(_LN2_HIGH, lanes))
    limits = tirx.Select(x > zero, x, constant(float("nan"), lanes))  # of infinity and of negative numbers
    limits = tirx.Select(x == zero, constant(float("-inf"), lanes), limits)
    is_finite = tirx.And(x > zero, x < constant(float("inf"), lanes))
    return in_register(tirx.Select(is_finite, result, limits))


@_by_library_in_float64
def log1p(value: Expr) -> Expr:
    """``log(1 + x)`` for each lane, exact to rounding near zero too.

    Kahan's formula: ``log(u) * x / (u - 1)`` for ``u = 1 + x`` as rounded, whose error cancels; ``x`` where ``u`` is 1.
    """
    lanes = lanes_of(value)
    x, one, infinity = in_register(value), constant(1.0, lanes), constant(float("inf"), lanes)
    u = in_register(one + x)
    result = in_register(log(u) * in_register(x / in_register(u - one)))
    return in_register(tirx.Select(u == one, x, tirx.Select(u < infinity, result, u)))


@_by_library_in_float64
def expm1(value: Expr) -> Expr:
    """``exp(x) - 1`` for each lane, exact to rounding near zero too.

    ``2^n * (exp(r) - 1) + (2^n - 1)`` for ``x = n * ln 2 + r``, all of it halved, so that ``2^128`` stays in range.
    """
    lanes = lanes_of(value)
    x = in_register(value)
    bounded = in_register(maximum(in_register(minimum(x, _EXP_LARGEST)), _EXPM1_SMALLEST))
    exponent = in_register(_round(bounded * constant(_LOG2_E, lanes)))
    power = in_register(T.cast(exponent, dtype_of(exponent).replace("float", "int")))
    half = in_register(_power_of_two(power - constant(1, lanes, "int32")))
    r = _remainder(bounded, exponent)
    fraction = in_register(_polynomial(r, _EXP_POLYNOMIAL) * (r * r) + r)
    result = in_register((half * fraction + (half - constant(0.5, lanes))) * constant(2.0, lanes))
    is_itself = tirx.And(x > constant(-_EXPM1_SMALL, lanes), x < constant(_EXPM1_SMALL, lanes))
    return in_register(tirx.Select(is_itself, x, result))


def sigmoid(value: Expr) -> Expr:
    """``1 / (1 + exp(-x))`` for each lane, within 1e-6 of the exact result, relative."""
    one = _like(value, 1.0)
    return in_register(one / (one + exp(_like(value, 0.0) - value)))


@_by_library_in_float64
def tanh(value: Expr) -> Expr:
    """Hyperbolic tangent of each lane, within 1e-6 relative."""
    return _odd_rational(value, _TANH_LARGEST, _TANH_NUMERATOR, _TANH_DENOMINATOR)


@_by_library_in_float64
def erf(value: Expr) -> Expr:
    """Error function of each lane, within 1e-6 relative."""
    return _odd_rational(value, _ERF_LARGEST, _ERF_NUMERATOR, _ERF_DENOMINATOR)


def gelu(value: Expr) -> Expr:
    """``x / 2 * (1 + erf(x / sqrt(2)))`` for each lane: the exact form, PyTorch's default."""
    x = in_register(value)
    both = _like(value, 1.0) + erf(x * _like(value, 0.70710678118654752))
    return in_register(_like(value, 0.5) * x * both)


def gelu_tanh(value: Expr) -> Expr:
    """``x / 2 * (1 + tanh(u))`` for each lane, ``u = sqrt(2 / pi) * (x + 0.044715 * x^3)``.

    As ``x * sigmoid(2 * u)``, which is the same: next to -1, where the sum cancels, a tanh within rounding of it would
    leave a multiple of ``x``.
    """
    x = in_register(value)
    inner = x * (_like(value, 1.59576912160573073) + _like(value, 0.07135481627260025) * x * x)
    return in_register(x * sigmoid(inner))


def silu(value: Expr) -> Expr:
    """``x * sigmoid(x)`` for each lane, also known as swish."""
    x = in_register(value)
    return in_register(x * sigmoid(x))


def _like(vector: Expr, number: float) -> Expr:
    return constant(number, lanes_of(vector), dtype_of(vector, 1))


def _exp_mantissa(x: Expr, exponent: Expr) -> Expr:
    """``exp(x - exponent * ln 2)``, for ``exponent`` the rounded base-2 exponent of the result."""
    r = _remainder(x, exponent)
    return _polynomial(r, _EXP_POLYNOMIAL) * (r * r) + r + constant(1.0, lanes_of(x))


def _remainder(x: Expr, exponent: Expr) -> Expr:
    """``x - exponent * ln 2``, for an integer exponent."""
    lanes = lanes_of(x)
    r = in_register(x - exponent * constant(_LN2_HIGH, lanes))
    return in_register(r - exponent * constant(_LN2_LOW, lanes))


def _scaled(mantissa: Expr, exponent: Expr) -> Expr:
    """``mantissa * 2^exponent``; the power may leave the range of normal numbers though the result does not."""
    power = in_register(T.cast(exponent, dtype_of(exponent).replace("float", "int")))
    half = in_register(T.shift_right(power, constant(1, lanes_of(exponent), "int32")))
    return in_register(mantissa * _power_of_two(half) * _power_of_two(power - half))


def _round(value: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype_of(value), "llvm.rint", value)


def _power_of_two(exponent: Expr) -> Expr:
    lanes = lanes_of(exponent)
    bits = T.shift_left(exponent + constant(127, lanes, "int32"), constant(23, lanes, "int32"))
    return T.reinterpret(dtype_of(exponent).replace("int", "float"), bits)


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme, the highest power first."""
    lanes = lanes_of(x)
    result = constant(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        result = result * x + constant(coefficient, lanes)
    return result


def _odd_rational(value: Expr, largest: float, numerator: Sequence[float], denominator: Sequence[float]) -> Expr:
    """``x * P(x^2) / Q(x^2)`` for ``x`` clamped to ``[-largest, largest]``."""
    x = in_register(value)
    x = in_register(minimum(x, largest))
    x = in_register(maximum(x, -largest))
    square = in_register(x * x)
    return in_register(x * _polynomial(square, numerator) / _polynomial(square, denominator))
