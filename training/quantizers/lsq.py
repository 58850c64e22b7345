"""``lsq``: the step size itself is learned, from the errors of rounding inside of the range and of clipping outside.

Its gradient is divided by the root of (numbers of one sample x largest integer), so that a step moves as fast, for its
size, as weights do. Method: Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from .registry import ActivationQuantizer, register_quantizer
from .straight_through import rounded


@register_quantizer("lsq")
class LsqQuantizer(ActivationQuantizer):
    """Learns the step size of an activation by LSQ."""

    def begin(self, scale: float) -> None:
        self.step_size = nn.Parameter(torch.tensor(scale, dtype=torch.float32))

    @property
    def scale(self) -> torch.Tensor:
        return self.step_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, f32, rounded."""
        low, high = self.limits
        factor = 1 / math.sqrt(max(1, x.numel() // max(1, len(x)) if x.ndim else 1) * max(high, -low))
        return rounded(x, self.step_size, (low, high), factor)
