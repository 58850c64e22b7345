"""``l2``: the square of a weight; of several that go together, the mean square."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..weights import LayerWeight
from .registry import WeightScoring, register_weight_criterion


@register_weight_criterion("l2")
def l2(weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """See the module."""
    return [weight.numbers.double().square() for weight in weights]
