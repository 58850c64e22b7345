"""Element types that templates multiply: floating point, or integers with a zero point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....ir.ops.integers import WEIGHT_BITS, check_weight_bits
from .bfloat16 import NUMBER_TYPES

if TYPE_CHECKING:
    import torch

INTEGER_RANGES = {"uint8": (0, 255), "int8": (-128, 127)}


def is_integer(dtype: str) -> bool:
    """Whether sums of products are exact, in int32."""
    return dtype in INTEGER_RANGES


def check_weight_shape(weight: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a weight to be packed that has another shape than its spec says; raises ValueError."""
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {expected}")


def check_operands(dtype: str, zero_point: int = 0, weight_bits: int = WEIGHT_BITS) -> None:
    """Refuse element types that products are not computed of, and numbers out of range; raises ValueError."""
    if dtype not in (*NUMBER_TYPES, *INTEGER_RANGES):
        raise ValueError(f"dtype {dtype} is not supported; {', '.join((*NUMBER_TYPES, *INTEGER_RANGES))} are")
    lowest, highest = INTEGER_RANGES.get(dtype, (0, 0))
    if not lowest <= zero_point <= highest:
        raise ValueError(f"zero_point={zero_point} of {dtype} must be in {lowest} … {highest}")
    check_weight_bits(weight_bits)
