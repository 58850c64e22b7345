"""``lamp``: the square of a weight over the sum of the squares of all weights of its layer that are no smaller.

So the largest weight of every layer has the score 1, and layers can be compared whatever the scale of their weights.

Method: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..weights import LayerWeight
from .registry import WeightScoring, register_weight_criterion


@register_weight_criterion("lamp")
def lamp(weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """See the module."""
    return [_relative(weight.numbers.double().square()) for weight in weights]


def _relative(squares: torch.Tensor) -> torch.Tensor:
    ordered, places = squares.flatten().sort(descending=True)
    scores = ordered / ordered.cumsum(0).clamp(min=1e-300)
    return torch.empty_like(scores).scatter_(0, places, scores).reshape(squares.shape)
