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

from collections.abc import Callable

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
        pinned = steps.abs().argmax(
            2
        )  # the largest of each row becomes the largest integer, so that it keeps its scale

        def nearest(term: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            place = term[:, None]
            rounded = weight.round().clamp(-largest, largest)
            exact = steps.gather(2, place[:, :, None].expand(*pinned.shape, 1)).squeeze(2).round()
            return torch.where(pinned == place, exact, rounded)

        return round_most_varied_first(steps, covariance, self.damping, nearest)


# Of each group, the term that a column of weights [groups, outputs] belongs to, and the column: what it is rounded to.
Nearest = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def round_most_varied_first(
    weights: torch.Tensor, covariance: torch.Tensor, damping: float, nearest: Nearest
) -> torch.Tensor:
    """What weights become when those of the terms with the largest variance are rounded first.

    Parameters
    ----------
    weights
        float64 [groups, outputs, terms].
    covariance
        float64 [groups, terms, terms].
    damping
        Added to its diagonal, as a share of the mean.
    nearest
        Rounds the weights of one term of each group.
    """
    variances = covariance.diagonal(dim1=1, dim2=2)
    order = variances.argsort(1, descending=True)
    terms = order.shape[1]
    rows = covariance.gather(1, order[:, :, None].expand_as(covariance))
    sorted_covariance = rows.gather(2, order[:, None, :].expand_as(covariance))
    added = damping * variances.mean(1).clamp(min=1e-30)
    damped = sorted_covariance + added[:, None, None] * torch.eye(terms, dtype=torch.float64)
    places = order[:, None, :].expand_as(weights)
    found = round_in_order(weights.gather(2, places), damped, lambda place, one: nearest(order[:, place], one))
    return torch.empty_like(found).scatter_(2, places, found)


def round_in_order(
    weights: torch.Tensor, covariance: torch.Tensor, nearest: Callable[[int, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What weights become when they are rounded from the first term to the last.

    Parameters
    ----------
    weights
        float64 [groups, outputs, terms].
    covariance
        float64 [groups, terms, terms], positive definite.
    nearest
        Given a term and its weights [groups, outputs]: what these are rounded to.
    """
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)), upper=True)
    left, rounded = weights.clone(), torch.empty_like(weights)
    for start in range(0, weights.shape[2], _BLOCK):
        stop = min(start + _BLOCK, weights.shape[2])
        block, errors = left[:, :, start:stop], torch.empty_like(left[:, :, start:stop])
        for index in range(stop - start):
            term = start + index
            weight = block[:, :, index]
            chosen = nearest(term, weight)
            rounded[:, :, term] = chosen
            errors[:, :, index] = (weight - chosen) / factor[:, term, term, None]
            block[:, :, index:] -= errors[:, :, index, None] * factor[:, None, term, term:stop]
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return rounded
