"""``gptq``: weights are rounded one input after another, and those that are left make up for the error so far.

With H the covariance of a layer's operand, rounding weight j of a row by an error e is made up for best if the weights
behind j change by ``-e [H^-1]_j: / [H^-1]_jj``, where H^-1 is that of the weights that are left. For all rows these are
the rows of one upper Cholesky factor of H^-1. Weights are updated lazily: within a block at once, behind it once for
the whole block. Inputs with the largest variance come first. H is damped by a hundredth of its mean diagonal, and
everything is computed in float64.

Runs on calibrated notes, before ``bias-correction``, which it makes unnecessary (`rounding`). Method: Frantar et al.,
"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023.
"""

from __future__ import annotations

import torch

from ..registry import register_pass
from .rounding import RoundingPass

_BLOCK = 128


@register_pass("gptq", purpose="quantize")
class Gptq(RoundingPass):
    """Round weights one input after another, and let the others make up for the error.

    Attributes
    ----------
    damping
        Added to the diagonal of the covariance, as a share of its mean.
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    def choose(self, steps: torch.Tensor, scales: torch.Tensor, covariance: torch.Tensor, largest: int) -> torch.Tensor:
        variances = covariance.diagonal(dim1=1, dim2=2)
        order = variances.argsort(1, descending=True)
        terms = order.shape[1]
        sorted_steps = steps.gather(2, order[:, None, :].expand_as(steps))
        rows = covariance.gather(1, order[:, :, None].expand_as(covariance))
        sorted_covariance = rows.gather(2, order[:, None, :].expand_as(covariance))
        damping = self.damping * variances.mean(1).clamp(min=1e-30)
        damped = sorted_covariance + damping[:, None, None] * torch.eye(terms, dtype=torch.float64)
        found = round_in_order(sorted_steps, damped, largest)
        return torch.empty_like(found).scatter_(2, order[:, None, :].expand_as(found), found)


def round_in_order(steps: torch.Tensor, covariance: torch.Tensor, largest: int) -> torch.Tensor:
    """Integers for weights in units of their scales, from the first term to the last.

    The largest weight of each row becomes the largest integer, so that the row keeps its scale.

    Parameters
    ----------
    steps
        float64 [groups, outputs, terms].
    covariance
        float64 [groups, terms, terms], positive definite.
    largest
        Integer; its negative is the smallest.
    """
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)), upper=True)
    magnitudes = steps.abs()
    pinned = magnitudes.argmax(2)
    left, integers = steps.clone(), torch.empty_like(steps)
    for start in range(0, steps.shape[2], _BLOCK):
        stop = min(start + _BLOCK, steps.shape[2])
        block, errors = left[:, :, start:stop], torch.empty_like(left[:, :, start:stop])
        for index in range(stop - start):
            term = start + index
            weight = block[:, :, index]
            nearest = weight.round().clamp(-largest, largest)
            integer = torch.where(pinned == term, steps[:, :, term].round(), nearest)
            integers[:, :, term] = integer
            errors[:, :, index] = (weight - integer) / factor[:, term, term, None]
            block[:, :, index:] -= errors[:, :, index, None] * factor[:, None, term, term:stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return integers
