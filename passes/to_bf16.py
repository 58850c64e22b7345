"""Compute in bf16: half the memory traffic, and the matrix units of recent processors.

Before::

    %1 = conv2d(%x, %weight, %bias)           : f32[1,64,56,56]
    %2 = relu(%1)                             : f32[1,64,56,56]

After::

    %1 = cast(%x) {dtype=bf16}                : bf16[1,64,56,56]
    %2 = conv2d(%1, %weight.bf16, %bias)      : bf16[1,64,56,56]
    %3 = relu(%2)                             : bf16[1,64,56,56]
    %4 = cast(%3) {dtype=f32}                 : f32[1,64,56,56]

A bf16 number is the upper half of a float32: the same range, 8 bits of precision. What is converted and what is
refused, `tersor.passes.half_precision` says. Method: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training",
2019.
"""

from __future__ import annotations

from ..ir import DType
from .half_precision import HalfPrecision
from .registry import register_pass


@register_pass("to-bf16", purpose="narrow")
class ToBf16(HalfPrecision):
    """Compute convolutions, matrix products and what stands between them in bf16, accumulating in float32."""

    dtype = DType.BF16
