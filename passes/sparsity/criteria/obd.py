"""``obd``: by how much the loss rises when a weight is zero, after Optimal Brain Damage.

That is ``h w^2 / 2`` with the second derivative h, which is that of Gauss and Newton
(`tersor.passes.pruning.gradients.curvatures`).

Method: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...pruning.gradients import Objective, curvatures
from ..weights import LayerWeight
from .registry import WeightScoring, on_data, register_weight_criterion


@register_weight_criterion("obd")
@on_data
def obd(weights: Sequence[LayerWeight], scoring: WeightScoring) -> list[torch.Tensor]:
    """See the module."""
    objective = Objective(scoring.graph, scoring.loss, scoring.seed)
    found = curvatures(objective, [weight.id for weight in weights], scoring.batches())
    return [found[weight.id] * weight.numbers.double().square() / 2 for weight in weights]
