"""``bn-gamma``: the magnitude of the scale that batch normalisation gives a channel.

A normalised channel has unit variance, so that the scale (gamma) tells its size at all depths alike; where several
normalisations scale a channel, their mean counts. Channels that none scales stay. Best after training with an L1
penalty on the scales, which drives them to zero: Liu et al., "Learning Efficient Convolutional Networks through Network
Slimming", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....ir import TersorError
from ....ir.ops import BatchNormOp, WeightOp
from ..groups import ChannelGroup
from .registry import Scores, Scoring, per_channel, register_criterion


@register_criterion("bn-gamma")
def bn_gamma(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module; raises TersorError when no batch normalisation scales a group."""
    norms = [op for op in scoring.graph.ops if isinstance(op, BatchNormOp)]
    gammas = {op.gamma.op.attrs.id for op in norms if op.gamma is not None and isinstance(op.gamma.op, WeightOp)}
    scores = [_score(group, scoring, gammas) for group in groups]
    if all(np.isinf(one).all() for one in scores):
        raise TersorError(
            "criterion 'bn-gamma' finds no batch normalisation with a scale; put prune-channels before fold-batchnorm"
            " (O2 and O3 fold it), or use criterion=l1"
        )
    return scores


def _score(group: ChannelGroup, scoring: Scoring, gammas: set[str]) -> Scores:
    found = [place for place in group.places if place.weight in gammas]
    if not found:
        return np.full(group.size, np.inf)
    return np.mean([per_channel(group, place, scoring.weight(place)[:, 0].abs()) for place in found], axis=0)
