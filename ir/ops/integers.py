"""What convolutions, linear layers and averages of 8-bit integers have in common: element types, limits, exact sums.

PyTorch has no integer convolution on the CPU. Its float64 kernels compute integers below 2^53 exactly, in any order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core import Op, Value
from ..types import DType, TensorType

QUANTIZED = (DType.U8, DType.I8)
_LIMIT = 2**31 - 1  # of an i32
_LARGEST_WEIGHT = 128


def integer_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest number of an integer type."""
    limits = torch.iinfo(dtype.torch)
    return limits.min, limits.max


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
