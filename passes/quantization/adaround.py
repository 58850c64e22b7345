"""``adaround``: whether each weight is rounded up or down is learned, all weights of a layer together.

A weight w, in units of its scale, becomes ``floor(w) + h(v)``, where the rectified sigmoid
``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)`` starts at the fraction of w. Gradient descent makes small

    error of the layer / error of the nearest integers + strength * mean(1 - |2 h - 1|^beta)

with beta falling from 20 to 2, so that the second term first pulls only what is near 0 or 1, and at last everything.
For the first fifth of the steps it is left out. The error is that on all calibration data, since it is a quadratic form
in the weights (`moments`): no batches are drawn, so some hundred steps are enough, and results repeat. At last each
weight in turn takes the better of its two integers, the others being fixed: what the descent has left undecided.

Runs on calibrated notes, before ``bias-correction``, which it makes unnecessary (`rounding`). Method: Nagel et al., "Up
or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
"""

from __future__ import annotations

import torch

from ..registry import register_pass
from .rounding import RoundingPass

_STRETCH, _OFFSET = 1.2, -0.1  # of the sigmoid, whose ends are cut off
_WARM_UP = 0.2
_BETAS = (20.0, 2.0)
_RATE = 0.05  # of Adam


@register_pass("adaround", purpose="quantize")
class AdaRound(RoundingPass):
    """Learn for all weights of a layer together whether each is rounded up or down.

    Attributes
    ----------
    iterations
        Of gradient descent, for each layer.
    strength
        Of what makes fractions whole, beside the error.
    """

    iterations: int = 300
    strength: float = 30.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, not {self.iterations}")
        if not self.strength > 0:
            raise ValueError(f"strength must be above 0, not {self.strength:g}")

    def choose(self, steps: torch.Tensor, scales: torch.Tensor, covariance: torch.Tensor, largest: int) -> torch.Tensor:
        is_largest = steps.abs() == steps.abs().amax(2, keepdim=True)  # keeps its row's scale
        down = torch.where(is_largest, steps.round(), steps.floor()).clamp(-largest, largest)
        free = ~is_largest & (down < largest)
        fraction = torch.where(free, steps - down, 0.0)
        nearest = (fraction.round() - fraction) * scales
        error = ((nearest @ covariance) * nearest).sum().item()
        if not error > 0:
            return down + fraction.round()
        up = self._learn(fraction.float(), free, scales.float(), (covariance / error).float())
        return _settled(steps, down, free, down + torch.where(free, up, 0.0).double(), covariance)

    def _learn(
        self, fraction: torch.Tensor, free: torch.Tensor, scales: torch.Tensor, covariance: torch.Tensor
    ) -> torch.Tensor:
        """1 where a weight is to be rounded up, else 0; gradients are written out."""
        position = torch.logit(((fraction - _OFFSET) / _STRETCH).clamp(1e-4, 1 - 1e-4))
        momentum, square = torch.zeros_like(position), torch.zeros_like(position)
        weight = self.strength / max(1, int(free.sum()))
        for step in range(1, self.iterations + 1):
            sigmoid = position.sigmoid()
            stretched = _STRETCH * sigmoid + _OFFSET
            height = stretched.clamp(0, 1)
            gradient = 2 * (((height - fraction) * scales) @ covariance) * scales
            progress = (step / self.iterations - _WARM_UP) / (1 - _WARM_UP)
            if progress > 0:
                beta = _BETAS[1] + (_BETAS[0] - _BETAS[1]) * (1 - progress)
                centred = 2 * height - 1
                gradient -= weight * 2 * beta * centred.abs() ** (beta - 1) * centred.sign()
            inside = (stretched > 0) & (stretched < 1) & free
            gradient = torch.where(inside, gradient * _STRETCH * sigmoid * (1 - sigmoid), 0.0)
            momentum = 0.9 * momentum + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            scale = (square / (1 - 0.999**step)).sqrt() + 1e-12
            position -= _RATE * momentum / (1 - 0.9**step) / scale
        return (position > 0).float()


def _settled(
    steps: torch.Tensor, down: torch.Tensor, free: torch.Tensor, integers: torch.Tensor, covariance: torch.Tensor
) -> torch.Tensor:
    """Coordinate descent, once over all terms: the better of ``down`` and ``down + 1`` for each free weight.

    A row's scale does not matter, since its weights are compared with each other only.
    """
    off = integers - steps
    variances = covariance.diagonal(dim1=1, dim2=2)
    for term in range(steps.shape[2]):
        variance = variances[:, term, None]
        others = (off @ covariance[:, :, term, None])[:, :, 0] - off[:, :, term] * variance
        low = down[:, :, term] - steps[:, :, term]
        wanted = -others / variance.clamp(min=1e-300)  # the error at which the row's variance is least
        best = torch.where(wanted > low + 0.5, low + 1, low)
        is_free = free[:, :, term] & (variance > 0)
        off[:, :, term] = torch.where(is_free, best, off[:, :, term])
    return (off + steps).round()
