"""Compute in IEEE half precision: half the memory traffic, and the tensor cores of GPUs.

Before::

    %1 = conv2d(%x, %weight, %bias)           : f32[1,64,56,56]
    %2 = relu(%1)                             : f32[1,64,56,56]

After::

    %1 = cast(%x) {dtype=f16}                 : f16[1,64,56,56]
    %2 = conv2d(%1, %weight.f16, %bias)      : f16[1,64,56,56]
    %3 = relu(%2)                             : f16[1,64,56,56]
    %4 = cast(%3) {dtype=f32}                 : f32[1,64,56,56]

A number of IEEE half precision has 11 bits of precision and no magnitude beyond 65504; a network whose activations are
larger overflows, which the reported error shows. What is converted and what is refused, `tersor.passes.half_precision`
says. Only the CUDA targets have kernels for it. Method: Micikevicius et al., "Mixed Precision Training", 2018.
"""

from __future__ import annotations

from ..ir import DType
from .half_precision import HalfPrecision
from .registry import register_pass


@register_pass("to-fp16", purpose="narrow")
class ToFp16(HalfPrecision):
    """Compute convolutions, matrix products and what stands between them in half precision, accumulating in float32."""

    dtype = DType.F16
