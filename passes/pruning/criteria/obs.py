"""``obs``: what the next layers' outputs change by without a channel when all other weights make up for it.

With ``H = X'X`` of what a layer reads and its weights W, taking the unknowns c of a channel away costs
``tr(W_c' (H^-1)_cc^-1 W_c)`` when the other weights are updated to the best (Optimal Brain Surgeon). A channel's score
is the sum over the layers that read it, each in units of the squares of its outputs, over the mean of the group. So
``prune-channels`` makes that update, with ``reconstruct=refit`` where nothing else is asked for.

Method: Hassibi, Stork, Wolff, "Optimal Brain Surgeon and General Network Pruning", ICNN 1993; for blocks: Frantar,
Alistarh, "Optimal Brain Compression", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....ir import Op
from ..groups import ChannelGroup
from ..moments import LayerSums, collect, refusal
from ..readers import Reader, readers_of
from ..reconstruction import Reading
from ..reconstruction.obs import Surgeon
from .registry import Scores, Scoring, mean_of_relative, on_data, register_criterion


@register_criterion("obs")
@on_data
def obs(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module; channels that no layer with sums of its own reads stay."""
    found = [reader for reader in scoring.readers if not refusal(reader)]
    moments = collect(scoring.graph, {}, found, scoring.batches(), scoring.seed)
    return [_score(group, readers_of(group, found), moments, scoring) for group in groups]


def _score(group: ChannelGroup, readers: Sequence[Reader], moments: Mapping[Op, LayerSums], scoring: Scoring) -> Scores:
    if not readers:
        return np.full(group.size, np.inf)
    total = np.zeros(group.size)
    for reader in readers:
        sums = moments[reader.op]
        weight = sums.matrix(scoring.graph.weights[reader.weight_id or ""])
        everything = np.ones(len(reader.kernels), bool)
        surgeon = Surgeon(Reading(sums, weight, reader.kernel_positions(group), everything))
        total += [surgeon.cost(channel) for channel in range(group.size)]
    return mean_of_relative([total], group.size)
