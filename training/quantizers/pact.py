"""``pact``: the largest number that is kept is learned, from what is clipped there; weight decay pulls it down.

With the limit ``a``, the step size is ``a`` over the largest integer. Numbers inside of the range have no say. In the
paper the activation is a ReLU; of a signed one, what is clipped below counts by its share of the limit. Method: Choi et
al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018.
"""

from __future__ import annotations

import torch
from torch import nn

from .registry import ActivationQuantizer, register_quantizer
from .straight_through import rounded


@register_quantizer("pact")
class PactQuantizer(ActivationQuantizer):
    """Learns where an activation is clipped, by PACT."""

    def begin(self, scale: float) -> None:
        self.clip = nn.Parameter(torch.tensor(scale * self._largest, dtype=torch.float32))

    @property
    def _largest(self) -> int:
        """The largest integer, or the smallest where only negative numbers have any."""
        low, high = self.limits
        return high if high else -low

    @property
    def scale(self) -> torch.Tensor:
        return self.clip / self._largest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, f32, clipped and rounded."""
        return rounded(x, self.scale, self.limits, learns_inside=False)
