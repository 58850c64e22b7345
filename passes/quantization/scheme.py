"""From ranges and weights to scales, zero points and integers: ``number = scale * (q - zero_point)``.

Activations: one scale and zero point a tensor, chosen so that zero is an integer (it pads, and most activations have
many zeros). Weights: one scale for each output channel, no zero point, from -127 to 127, or closer to zero where fewer
bits are asked for. Biases have the scale of the sums that they are added to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...ir import DType
from ...ir.ops.integers import WEIGHT_BITS, integer_range, needed_bits

LARGEST_WEIGHT = 127  # of so many bits
# Half of the range of i32 is for the bias, half for the products of the largest u8 and i8 numbers.
LARGEST_BIAS = 2**30
MOST_TERMS = 2**30 // (255 * 128)  # in one sum
MOST_PRODUCT_TERMS = (2**31 - 1) // 255**2  # in one sum of products of two activations
_SMALLEST_SCALE = 1e-30  # far from numbers that f32 cannot hold any more


@dataclass(frozen=True)
class QuantizationStep:
    """How integers of a tensor stand for numbers.

    Attributes
    ----------
    scale
        Distance between neighbours.
    zero_point
        The integer that stands for zero.
    dtype
        u8 or i8.
    """

    scale: float
    zero_point: int
    dtype: DType

    @classmethod
    def covering(cls, low: float, high: float, dtype: DType) -> QuantizationStep:
        """The finest one that reaches from ``low`` to ``high`` and has zero among its numbers."""
        low, high = min(low, 0.0), max(high, 0.0)
        smallest, largest = integer_range(dtype)
        scale = max((high - low) / (largest - smallest), _SMALLEST_SCALE)
        return cls(scale, smallest + min(round(-low / scale), largest - smallest), dtype)

    def nearest(self, numbers: torch.Tensor) -> torch.Tensor:
        """What integers stand for instead of ``numbers``, f32."""
        smallest, largest = (limit - self.zero_point for limit in integer_range(self.dtype))
        return (numbers / self.scale).round_().clamp_(smallest, largest).mul_(self.scale)

    def index_of(self, number: float) -> int:
        """The nearest integer for ``number``, which may be outside of the type's range."""
        return round(number / self.scale) + self.zero_point


@dataclass(frozen=True)
class IntegerLayer:
    """Weight and bias of a layer as integers.

    Attributes
    ----------
    weight
        i8, the shape of the layer's weight.
    bias
        i32 [O], or None.
    scales
        float64 [O]: what one unit of each channel's sum stands for.
    summand
        float64 [O]: what is added to the numbers that the sums stand for; None for nothing.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scales: torch.Tensor
    summand: torch.Tensor | None = None

    @property
    def weight_bits(self) -> int:
        """Bits that all integers of the weight fit, as layers say it."""
        return needed_bits(self.weight)


def largest_weight(bits: int) -> int:
    """Largest integer of a weight; its negative is the smallest, so that 8 bits reach from -127 to 127."""
    return (1 << bits - 1) - 1


def weight_scales(weight: torch.Tensor, largest: int = LARGEST_WEIGHT) -> torch.Tensor:
    """float64 scale of each output channel (dimension 0): its largest magnitude becomes the integer ``largest``."""
    magnitudes = weight.double().flatten(1).abs().amax(1)
    return (magnitudes / largest).clamp(min=_SMALLEST_SCALE)


def rounded_weight(weight: torch.Tensor, scales: torch.Tensor, largest: int = LARGEST_WEIGHT) -> torch.Tensor:
    """The integers of a weight, as float64, for scales of its dimension 0."""
    steps = weight.double() / _per_channel(scales, weight)
    return steps.round().clamp(-largest, largest)


def representable_weight(weight: torch.Tensor, largest: int = LARGEST_WEIGHT) -> torch.Tensor:
    """A weight after rounding to integers up to ``largest`` and back, as float64."""
    scales = weight_scales(weight, largest)
    return rounded_weight(weight, scales, largest) * _per_channel(scales, weight)


def integer_layer(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_scale: float,
    bits: int = WEIGHT_BITS,
    scales: torch.Tensor | None = None,
) -> IntegerLayer:
    """Quantize a layer whose operand has the scale ``input_scale``; scales of its weight are given, or `weight_scales`.

    A channel whose weights are so small beside its bias that the bias would not fit gets a coarser scale.
    """
    largest = largest_weight(bits)
    scales = weight_scales(weight, largest) if scales is None else scales.double()
    if bias is not None:
        scales = torch.maximum(scales, bias.double().abs() / (input_scale * LARGEST_BIAS))
    sums = scales * input_scale
    integers = None if bias is None else (bias.double() / sums).round().to(torch.int32)
    return IntegerLayer(rounded_weight(weight, scales, largest).to(torch.int8), integers, sums)


def _per_channel(scales: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scales.reshape(-1, *[1] * (weight.ndim - 1))
