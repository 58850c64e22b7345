"""Time against channels: what layers take at the numbers of channels that fill vectors, measured one by one.

The time of a layer is no smooth function of its channels but a staircase: kernels compute whole vectors and whole tiles
of them. Each layer is measured alone with each of its groups at some counts (`counts_of`), all other groups whole, and
once as it is. Between these the model multiplies: a layer that takes 0.6 of its time with one group of outputs smaller,
and 0.5 with one of inputs, takes 0.3 with both. What several groups take away on one side (of a concatenation) is
added. What no layer takes (pooling, elementwise ops, calls) is the rest of the graph's time, and stays.

Latency tables of layers: Yang et al., "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications",
ECCV 2018, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...ir import Graph, Op, is_constant
from ..base import Latency
from ..progress import Remaining
from .groups import ChannelGroup, ChannelMap
from .select import Limits, stay
from .trial import layer_alone

MOST_COUNTS = 16  # that a group is measured at

Counts = Sequence[int]  # channels that stay, by index of the group


def counts_of(group: ChannelGroup, limits: Limits) -> tuple[int, ...]:
    """The numbers of channels that a group may have, ascending, whole groups included.

    These fill vectors (`Limits.kept`). Of more than `MOST_COUNTS` those stay that fill tiles of two vectors, of four,
    and so on; and the smallest one.
    """
    allowed = sorted({limits.kept(group, wanted) for wanted in range(1, group.size + 1)})
    step = 1
    while len(allowed) > MOST_COUNTS and len(allowed) // step > MOST_COUNTS:
        step *= 2
    unit = step * limits.multiple // math.gcd(step * limits.multiple, group.width)
    chosen = {one for one in allowed if step == 1 or one % unit == 0}
    return tuple(sorted(chosen | {allowed[0], group.size}))


@dataclass(frozen=True)
class _Curve:
    """What share of a layer's time is left, by the count of one group; between two measured ones on a straight line."""

    counts: tuple[int, ...]
    shares: tuple[float, ...]

    def at(self, count: int) -> float:
        return float(np.interp(count, self.counts, self.shares))


@dataclass(frozen=True)
class _LayerTime:
    """Seconds of a layer, and its curves by group: of those that it reads, makes, or both."""

    op: Op
    seconds: float
    sides: tuple[Mapping[int, _Curve], ...]

    def at(self, counts: Counts) -> float:
        left = 1.0
        for side in self.sides:
            left *= max(0.0, 1 - math.fsum(1 - curve.at(counts[group]) for group, curve in side.items()))
        return self.seconds * left


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a graph by the counts of its groups.

    Attributes
    ----------
    layers
        All layers that some group changes.
    others
        Seconds of all the rest.
    choices
        For each group the counts that were measured, ascending.
    """

    layers: tuple[_LayerTime, ...]
    others: float
    choices: tuple[tuple[int, ...], ...]

    def seconds(self, counts: Counts) -> float:
        """Of the whole graph."""
        return self.others + math.fsum(layer.at(counts) for layer in self.layers)

    def of_group(self, group: int, counts: Counts) -> float:
        """Of the layers that a group changes."""
        return math.fsum(layer.at(counts) for layer in self._by_group[group])

    def neighbours(self, group: int) -> set[int]:
        """The groups that change a layer which ``group`` changes, itself among them."""
        return {group, *(one for layer in self._by_group[group] for side in layer.sides for one in side)}

    def staircase(self, group: int) -> list[tuple[int, float]]:
        """Seconds of the layers that a group changes at each of its counts, when all other groups are whole."""
        counts = [choices[-1] for choices in self.choices]
        found = []
        for count in self.choices[group]:
            counts[group] = count
            found.append((count, self.of_group(group, counts)))
        return found

    @cached_property
    def _by_group(self) -> list[list[_LayerTime]]:
        groups = range(len(self.choices))
        return [[layer for layer in self.layers if any(group in side for side in layer.sides)] for group in groups]


def measure(
    graph: Graph,
    channels: ChannelMap,
    choices: Sequence[tuple[int, ...]],
    latency: Latency,
    progress: Callable[[str], None],
) -> TimeModel:
    """Measure all layers of ``graph`` that a group changes, at all counts of its groups in ``choices``."""
    tasks = [(op, sides) for op in graph.ops if any(sides := _sides(op, channels))]
    total = sum(1 + sum(len(choices[group]) for side in sides for group in side) for _, sides in tasks)
    remaining = Remaining(progress, "layers at numbers of channels", total)

    def counts_to_measure() -> Iterator[tuple[Op, Mapping[int, int]]]:
        for op, sides in tasks:
            yield op, {}
            yield from ((op, {group: count}) for side in sides for group in side for count in choices[group])

    latency.prepare((_layer_at(op, channels, counts),) for op, counts in counts_to_measure())
    layers = []
    for op, sides in tasks:
        whole = latency.graph_seconds(_layer_at(op, channels, {}))
        remaining.step()
        curves: list[dict[int, _Curve]] = [{} for _ in sides]
        for side, found in zip(sides, curves, strict=True):
            for group in side:
                times = [latency.graph_seconds(_layer_at(op, channels, {group: n})) for n in choices[group]]
                found[group] = _Curve(choices[group], tuple(seconds / whole for seconds in times))
                remaining.step(len(times))
        layers.append(_LayerTime(op, whole, tuple(curves)))
    others = latency.graph_seconds(graph) - math.fsum(layer.seconds for layer in layers)
    return TimeModel(tuple(layers), max(0.0, others), tuple(choices))


def _sides(op: Op, channels: ChannelMap) -> tuple[list[int], list[int], list[int]]:
    """Indices of the groups that an op with a kernel of its own only reads, only makes, and both."""
    if not op.macs() and not (op.leads_group and any(is_constant(value) for value in op.inputs)):
        return [], [], []
    values = [value for value in op.inputs if not is_constant(value)]
    read = _groups([one for value in values for one in channels.classes[value]], channels)
    made = _groups(channels.classes[op.results[0]], channels)
    return sorted(read - made), sorted(made - read), sorted(read & made)


def _groups(dims: Sequence[NDArray[np.int64]], channels: ChannelMap) -> set[int]:
    classes = np.unique(np.concatenate([*dims, np.zeros(1, np.int64)]))
    return {index for index, group in enumerate(channels.groups) if np.isin(group.channels, classes).any()}


def _layer_at(op: Op, channels: ChannelMap, counts: Mapping[int, int]) -> Graph:
    """A layer alone, with so many channels of some groups, and all of the others."""
    masks = [np.arange(group.size) < counts.get(index, group.size) for index, group in enumerate(channels.groups)]
    return layer_alone(op, channels, stay(channels, masks))
