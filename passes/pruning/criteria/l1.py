"""``l1``: the mean magnitude of the weights that make and that read a channel.

For each convolution or linear layer in which a group lies, filters and kernels alike, the mean absolute weight of each
channel is divided by the mean over the group's channels; a channel's score is the mean over the layers. So 1 is an
average channel, and scores of all layers are comparable. Biases and parameters of normalisations do not count.

For filters: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; with the kernels of all coupled layers:
Fang et al., "DepGraph", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..groups import ChannelGroup
from .registry import Scores, Scoring, per_channel, register_criterion


@register_criterion("l1")
def l1(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    return [_score(group, scoring) for group in groups]


def _score(group: ChannelGroup, scoring: Scoring) -> Scores:
    layers = [place for place in group.places if scoring.graph.weights[place.weight].ndim > 1]
    magnitudes = [per_channel(group, place, scoring.weight(place).abs().mean(1)) for place in layers]
    relative = [one / one.mean() for one in magnitudes if one.mean() > 0]
    return np.mean(relative, axis=0) if relative else np.zeros(group.size)
