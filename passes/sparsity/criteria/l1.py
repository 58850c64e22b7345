"""``l1``: the magnitude of a weight; of several that go together, the mean magnitude.

Method: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..weights import LayerWeight
from .registry import WeightScoring, register_weight_criterion


@register_weight_criterion("l1")
def l1(weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """See the module."""
    return [weight.numbers.double().abs() for weight in weights]
