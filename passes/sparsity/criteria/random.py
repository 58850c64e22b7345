"""``random``: uniform numbers from a seeded generator, the baseline that every criterion must beat; 0 for zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..weights import LayerWeight
from .registry import WeightScoring, register_weight_criterion


@register_weight_criterion("random")
def random(weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """See the module."""
    generator = torch.Generator().manual_seed(scoring.seed)
    return [
        (1 - torch.rand(weight.numbers.shape, generator=generator, dtype=torch.float64)) * (weight.numbers != 0)
        for weight in weights
    ]
