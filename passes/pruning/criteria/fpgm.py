"""``fpgm``: the distance of a channel's weights to those of all other channels of its group.

A channel near the geometric median of its group, where the sum of distances is least, is what the others can best stand
in for, however large its weights are. For each convolution or linear layer in which a group lies, the sums of Euclidean
distances are divided by their mean; a channel's score is the mean over the layers.

Method, for filters: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", CVPR 2019; here over filters and kernels of all coupled layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..groups import ChannelGroup, ChannelPlace
from .registry import Scores, Scoring, mean_of_relative, register_criterion


@register_criterion("fpgm")
def fpgm(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""

    def distances(group: ChannelGroup, place: ChannelPlace) -> Scores:
        vectors = _vectors(group, place, scoring.weight(place))
        found: Scores = torch.cdist(vectors, vectors).sum(1).numpy()
        return found

    return [mean_of_relative([distances(group, one) for one in scoring.layers(group)], group.size) for group in groups]


def _vectors(group: ChannelGroup, place: ChannelPlace, rows: torch.Tensor) -> torch.Tensor:
    """All weights of each channel, ``[group.size, N]``; zeros behind those of a channel that has fewer."""
    there = np.flatnonzero(place.channels >= 0)
    order = there[np.argsort(place.channels[there], kind="stable")]
    channels = place.channels[order]
    counts = np.bincount(channels, minlength=group.size)
    first = np.cumsum(counts) - counts
    turn = np.arange(len(order)) - first[channels]  # of a channel's indices, which one
    vectors = rows.new_zeros(group.size, int(counts.max()), rows.shape[1])
    vectors[torch.from_numpy(channels), torch.from_numpy(turn)] = rows[torch.from_numpy(order)]
    return vectors.flatten(1)
