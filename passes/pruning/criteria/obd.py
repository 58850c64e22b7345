"""``obd``: what the loss rises by when a channel's weights become zero, by the diagonal of the Hessian.

At a minimum of the loss the gradient is zero, and a weight w costs ``h w^2 / 2`` with its second derivative h. A
channel is taken out by its slices of the kernels that read it (`readers`), so its score is the sum over these, over the
mean of the group's channels. The
second derivatives are those of Gauss and Newton: squares of gradients, over the calibration batches. With a ``loss``,
they are those of the batches' losses (the empirical Fisher information), so batches should be small; without one, they
are exact on the mean over random signs (`gradients`).

Method: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..gradients import Objective, curvatures
from ..groups import ChannelGroup
from ..readers import Reader, readers_of
from .registry import Scores, Scoring, mean_of_relative, on_data, register_criterion


@register_criterion("obd")
@on_data
def obd(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module; channels that a computed weight reads stay."""
    readers = scoring.readers
    objective = Objective(scoring.graph, scoring.loss, scoring.seed)
    ids = list(dict.fromkeys(reader.weight_id for reader in readers if reader.weight_id is not None))
    curvature = curvatures(objective, ids, scoring.batches())
    costs = {id: curvature[id] * scoring.graph.weights[id].double().square() / 2 for id in ids}
    return [_score(group, readers_of(group, readers), costs) for group in groups]


def _score(group: ChannelGroup, readers: Sequence[Reader], costs: Mapping[str, torch.Tensor]) -> Scores:
    total = np.zeros(group.size)
    counted: set[str] = set()
    for reader in readers:
        if reader.weight_id is None:
            return np.full(group.size, np.inf)
        if reader.weight_id in counted:
            continue
        counted.add(reader.weight_id)
        positions = reader.kernel_positions(group)
        kernels = costs[reader.weight_id].transpose(0, 1).flatten(1).sum(1).numpy()
        total += np.bincount(positions[positions >= 0], kernels[positions >= 0], group.size)
    return mean_of_relative([total], group.size)
