"""``l2``: the root mean square of the weights that make and that read a channel.

As ``l1``, with the norm that gives a few large weights more say: for each convolution or linear layer in which a group
lies, each channel's root mean square is divided by the mean over the group's channels; a channel's score is the mean
over the layers.

For filters: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..groups import ChannelGroup, ChannelPlace
from .registry import Scores, Scoring, mean_of_relative, per_channel, register_criterion


@register_criterion("l2")
def l2(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""

    def size(group: ChannelGroup, place: ChannelPlace) -> Scores:
        return np.sqrt(per_channel(group, place, scoring.weight(place).square().mean(1)))

    return [mean_of_relative([size(group, one) for one in scoring.layers(group)], group.size) for group in groups]
