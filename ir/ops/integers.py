"""What layers, products and averages of 8-bit integers have in common: element types, limits, exact sums.

PyTorch has no integer convolution on the CPU. Its float64 kernels compute integers below 2^53 exactly, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..core import Op, Value
from ..types import DType, TensorType

QUANTIZED = (DType.U8, DType.I8)
WEIGHT_BITS = 8  # of integers as weights
NARROW_BITS = 7  # of those that some instructions multiply exactly that are not exact for all of 8 bits
_LIMIT = 2**31 - 1  # of an i32
_LARGEST_WEIGHT = 128


def integer_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest number of an integer type."""
    limits = torch.iinfo(dtype.torch)
    return limits.min, limits.max


def needed_bits(weight: torch.Tensor) -> int:
    """7 if these bits hold all integers of a weight, from -64 to 63, else 8."""
    low, high = (int(one) for one in weight.aminmax()) if weight.numel() else (0, 0)
    limit = 1 << NARROW_BITS - 1
    return NARROW_BITS if -limit <= low and high < limit else WEIGHT_BITS


def check_weight_bits(bits: int) -> None:
    """Refuse what `needed_bits` does not return; raises ValueError."""
    if bits not in (NARROW_BITS, WEIGHT_BITS):
        raise ValueError(f"weight_bits must be {NARROW_BITS} or {WEIGHT_BITS}, not {bits}")


def fits_bias(bias: Value | None, x: TensorType) -> bool:
    """Whether a bias has an element type that can be added to sums of products of ``x``."""
    if bias is None or bias.type.dtype is x.dtype:
        return True
    return x.dtype in (DType.BF16, DType.F16) and bias.type.dtype is DType.F32


def sum_type(op: Op, x: TensorType, weight: TensorType, bias: Value | None, terms: int, zero_point: int) -> DType:
    """Element type of sums of products of ``x - zero_point`` and ``weight``.

    It is i32 for an x of 8-bit integers, and that of both operands for all others.

    Parameters
    ----------
    terms
        Products in one sum.

    Raises
    ------
    IRError
        When the types do not fit, the zero point is no number of x's type, or sums could overflow.
    """
    if x.dtype in QUANTIZED:
        if weight.dtype is not DType.I8 or (bias is not None and bias.type.dtype is not DType.I32):
            types = ", ".join(str(value.type) for value in op.inputs)
            raise op.error(f"{x.dtype.value} operands need an i8 weight and an i32 bias, got {types}")
        low, high = integer_range(x.dtype)
        if not low <= zero_point <= high:
            raise op.error(f"zero_point {zero_point} is no {x.dtype.value} number")
        if terms * max(zero_point - low, high - zero_point) * _LARGEST_WEIGHT > _LIMIT:
            raise op.error(f"sums of {terms} products may not fit into i32; keep this layer in floating point")
        return DType.I32
    if x.dtype is not weight.dtype or not fits_bias(bias, x):
        raise op.error(f"operands must have one element type, got {', '.join(str(v.type) for v in op.inputs)}")
    if zero_point:
        raise op.error(f"zero_point {zero_point} needs a u8 or i8 operand, got {x}")
    return x.dtype


def exact_sums(
    op: Op,
    product: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    zero_point: int,
) -> torch.Tensor:
    """``product(x - zero_point, weight, bias)`` of integers as i32, exactly; IRError where a sum does not fit."""
    sums = product(x.double() - zero_point, weight.double(), None if bias is None else bias.double())
    if sums.numel() and sums.abs().max().item() > _LIMIT:
        raise op.error(f"a sum of products is {sums.abs().max().item():.0f} or its negative, which is no i32 number")
    return sums.to(torch.int32)


def check_product(op: Op, terms: int, *factors: tuple[DType, int]) -> None:
    """Refuse sums of products of two computed operands of 8-bit integers that could overflow.

    Parameters
    ----------
    terms
        Products in one sum.
    factors
        Element type of each operand, and the integer that stands for zero in it; other types have none but 0.

    Raises
    ------
    IRError
        When a zero point is no number of its type, or a sum may not fit into i32.
    """
    largest = int(terms)
    for dtype, zero_point in factors:
        low, high = integer_range(dtype) if dtype in QUANTIZED else (0, 0)
        if not low <= zero_point <= high:
            raise op.error(f"the zero point {zero_point} does not fit {dtype.value}; it must lie in {low} to {high}")
        largest *= max(zero_point - low, high - zero_point)
    if largest > _LIMIT:
        raise op.error(f"sums of {terms} products may not fit into i32; keep this product in floating point")


def exact_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b`` of integers whose sums fit into i32, as i32."""
    return torch.matmul(a.double(), b.double()).to(torch.int32)


def signed(integers: torch.Tensor) -> torch.Tensor:
    """8-bit integers as i32 from -128 to 127: those of u8 less 128."""
    return integers.to(torch.int32) - (128 if integers.dtype is torch.uint8 else 0)


# Softmax weights as integers: 255 * 2^x for x <= 0, rounded. ``x = n + r`` with r from -1/2 to 1/2, and 2^r is
# 1 + r * (c1 + r * (c2 + r * c3)), the polynomial with the least relative error, 1e-4; its coefficients times 255.
LARGEST_SHARE = 255.0
LOG2_E = 1.4426950408889634
SHARE_POLYNOMIAL = (0.05500885 * LARGEST_SHARE, 0.24221117 * LARGEST_SHARE, 0.69328296 * LARGEST_SHARE, LARGEST_SHARE)
LEAST_POWER = -16.0  # 255 * 2^-16 rounds to 0
LEAST_PEAK = -3.0e38  # finite, so that a row whose scores are all -inf has weights of 0


def softmax_shares(scores: torch.Tensor) -> torch.Tensor:
    """``round(255 * exp(score - largest score of the row))`` of f32 scores, as i32; NaN gives 0.

    Each operation on f32 numbers is rounded once, so compiled code gives the same integers.
    """

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float32)

    peaks = torch.nan_to_num(scores, nan=-math.inf, posinf=math.inf, neginf=-math.inf).amax(-1, keepdim=True)
    distance = scores - peaks.clamp(min=LEAST_PEAK)
    power = torch.nan_to_num(distance * number(LOG2_E), nan=LEAST_POWER, neginf=LEAST_POWER).clamp(min=LEAST_POWER)
    exponent = torch.round(power)
    rest = power - exponent
    share = number(SHARE_POLYNOMIAL[0]).expand(rest.shape)
    for coefficient in SHARE_POLYNOMIAL[1:]:
        share = share * rest + number(coefficient)
    return torch.round(torch.ldexp(share, exponent.to(torch.int32))).to(torch.int32)


def mean_type(op: Op, x: TensorType, terms: int) -> DType:
    """Element type of the mean of ``terms`` elements: f32 for 8-bit integers, else that of ``x``."""
    if x.dtype not in QUANTIZED:
        return x.dtype
    if terms * 255 > _LIMIT:
        raise op.error(f"the sum of {terms} elements of {x} may not fit into i32")
    return DType.F32


def mean_of_sums(sums: torch.Tensor, counts: torch.Tensor | float) -> torch.Tensor:
    """f32 means from exact integer sums: the rounded sum times the rounded reciprocal of the count."""
    reciprocal = 1.0 / torch.as_tensor(counts, dtype=torch.float32)
    return sums.to(torch.float32) * reciprocal
