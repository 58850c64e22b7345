"""``l1``: the mean magnitude of the weights that make and that read a channel.

For each convolution or linear layer in which a group lies, filters and kernels alike, the mean absolute weight of each
channel is divided by the mean over the group's channels; a channel's score is the mean over the layers. So 1 is an
average channel, and scores of all layers are comparable. Biases and parameters of normalisations do not count.

For filters: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; with the kernels of all coupled layers:
Fang et al., "DepGraph", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..groups import ChannelGroup
from .registry import Scores, Scoring, mean_of_relative, per_channel, register_criterion


@register_criterion("l1")
def l1(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    return [_score(group, scoring) for group in groups]


def _score(group: ChannelGroup, scoring: Scoring) -> Scores:
    layers = scoring.layers(group)
    return mean_of_relative([per_channel(group, one, scoring.weight(one).abs().mean(1)) for one in layers], group.size)
