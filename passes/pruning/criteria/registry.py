"""Criteria by name: how much the network would miss a channel.

A criterion is a function in a file of its own, registered under the name that pipelines say::

    @register_criterion("l1")
    def l1(groups, scoring):
        return [... for group in groups]      # one array [group.size] for each group; larger is more important

Scores are compared across groups, so each criterion sees to it that they can be. ``inf`` means: leave this channel in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ....ir import Graph, TersorError
from ...name_table import NameTable
from ..groups import ChannelGroup, ChannelPlace

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at besides the groups.

    Attributes
    ----------
    graph
        The graph to prune, with its weights.
    calibration
        Batches of inputs, one sequence of tensors each, or None.
    seed
        For criteria that draw numbers.
    """

    graph: Graph
    calibration: Iterable[Sequence[torch.Tensor]] | None
    seed: int

    def weight(self, place: ChannelPlace) -> torch.Tensor:
        """The weight of a place, in float64, with the channels' dimension first and all others flattened.

        Raises
        ------
        TersorError
            When a number is NaN or infinite, so that channels cannot be compared.
        """
        tensor = self.graph.weights[place.weight].double()
        if not bool(tensor.isfinite().all()):
            raise TersorError(f"weight {place.weight!r} has numbers that are not finite, so channels cannot be scored")
        return tensor.movedim(place.dim, 0).reshape(tensor.shape[place.dim], -1)


Criterion = Callable[[Sequence[ChannelGroup], Scoring], list[Scores]]

CRITERIA: NameTable[Criterion] = NameTable("criterion", family="pruning")

register_criterion = CRITERIA.register


def per_channel(group: ChannelGroup, place: ChannelPlace, numbers: torch.Tensor) -> Scores:
    """Means of ``numbers``, one for each index of ``place``, over the indices of each channel; 0 if not there."""
    there = place.channels >= 0
    at, found = place.channels[there], numbers.numpy()[there]
    sums = np.bincount(at, weights=found, minlength=group.size)
    return sums / np.maximum(np.bincount(at, minlength=group.size), 1)
