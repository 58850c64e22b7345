"""Criteria by name: how much the network would miss a channel.

A criterion is a function in a file of its own, registered under the name that pipelines say::

    @register_criterion("l1")
    def l1(groups, scoring):
        return [... for group in groups]      # one array [group.size] for each group; larger is more important

Scores are compared across groups, so each criterion sees to it that they can be. ``inf`` means: leave this channel in.
A function that is not registered is named as ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ....ir import Graph, TersorError
from ....ir.imports import find_function
from ...name_table import NameTable
from ...numeric import calibration_batches
from ..gradients import Loss
from ..groups import ChannelGroup, ChannelPlace, find_channels
from ..readers import Reader, find_readers

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
    loss
        For criteria that need gradients: takes what the model returns and the number of the batch, counted from 0, and
        returns one number. None stands for the distance of the outputs to those of the network as it is.
    """

    graph: Graph
    calibration: Iterable[Sequence[torch.Tensor]] | None
    seed: int
    loss: Loss | None = None

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The layers that read channels."""
        return find_readers(find_channels(self.graph))

    def batches(self) -> Iterable[Sequence[torch.Tensor]]:
        """Calibration batches, one after another; raises TersorError without any, and where one does not fit."""
        return calibration_batches(self.graph, self.calibration)

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

    def layers(self, group: ChannelGroup) -> list[ChannelPlace]:
        """The places of a group in filters and kernels; biases and parameters of normalisations are left out."""
        return [place for place in group.places if self.graph.weights[place.weight].ndim > 1]


Criterion = Callable[[Sequence[ChannelGroup], Scoring], list[Scores]]

CRITERIA: NameTable[Criterion] = NameTable("criterion", family="pruning")

register_criterion = CRITERIA.register
_ON_DATA: set[Criterion] = set()


def on_data(criterion: Criterion) -> Criterion:
    """Decorator: say that a criterion asks for calibration data, so that a run without any fails at once."""
    _ON_DATA.add(criterion)
    return criterion


def needs_data(name: str) -> bool:
    """Whether a criterion says that it asks for calibration data."""
    return find_criterion(name) in _ON_DATA


def find_criterion(name: str) -> Criterion:
    """What is registered under ``name``, or the user's function that ``package.module:function`` names."""
    if ":" not in name:
        return CRITERIA.find(name)
    criterion: Criterion = find_function(name, "that scores channels")
    return criterion


def score(name: str, groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """Scores by a criterion.

    Raises
    ------
    TersorError
        When they are not one number for each channel of each group; the message names a layer.
    """
    found = [np.asarray(one, np.float64) for one in find_criterion(name)(groups, scoring)]
    if len(found) != len(groups):
        raise TersorError(f"criterion {name!r} returns {len(found)} arrays for {len(groups)} groups of channels")
    for group, scores in zip(groups, found, strict=True):
        layer = group.layers[0].describe()
        if scores.shape != (group.size,):
            raise TersorError(
                f"criterion {name!r} returns an array {list(scores.shape)} for the {group.size} channels of {layer}"
            )
        if np.isnan(scores).any():
            raise TersorError(f"criterion {name!r} gives channels of {layer} scores that are not a number (NaN)")
    return found


def per_channel(group: ChannelGroup, place: ChannelPlace, numbers: torch.Tensor) -> Scores:
    """Means of ``numbers``, one for each index of ``place``, over the indices of each channel; 0 if not there."""
    return means(place.channels, numbers, group.size)


def means(positions: NDArray[np.int64], numbers: torch.Tensor, size: int) -> Scores:
    """Means of ``numbers``, one for each of ``positions`` (-1 for none), over those at each of ``size`` positions."""
    there = positions >= 0
    at, found = positions[there], numbers.numpy()[there]
    sums = np.bincount(at, weights=found, minlength=size)
    return sums / np.maximum(np.bincount(at, minlength=size), 1)


def mean_of_relative(parts: Sequence[Scores], size: int) -> Scores:
    """The mean of several arrays ``[size]``, each divided by its own mean first; those of zeros are left out."""
    relative = [one / one.mean() for one in parts if one.mean() > 0]
    return np.mean(relative, axis=0) if relative else np.zeros(size)
