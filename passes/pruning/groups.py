"""Channel groups: which slices of which weights can only be removed together.

Labels flow through the graph op by op (`flows`): a layer's filters make new ones, everything between layers passes them
on, joins or splits them, and the next layer's kernels, biases and normalisation parameters are tied to what they meet.
What is tied is one channel of the whole network, wherever it lies: an index map from each dimension of each weight to
channels. Channels that lie in the same dimensions of the same weights form a group, for example the 64 channels of a
residual stream with all layers that write to it and read it. Groups are independent of one another, and as long as one
channel of every group stays, no tensor becomes empty.

A channel may be wide: a group of a group norm with all its filters, an attention head with its part of query, key,
value and of the layer behind, heads that share a key, a unit of a recurrent layer with a row of each gate.

Method: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, with index maps in place of pairs of layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...ir import ChannelFlow, Graph, Op, Value
from ...ir.ops import WeightOp
from .atoms import FIXED, Atoms, Dims, Labels, Resolved, fixed
from .flows import flow_of
from .mixing import mixed_dims


@dataclass(frozen=True)
class ChannelPlace:
    """Where channels of a group lie: dimension ``dim`` of the weight with id ``weight``.

    Attributes
    ----------
    channels
        For each index along the dimension, the position of its channel in the group; -1 for channels of other groups
        and for those that must stay.
    """

    weight: str
    dim: int
    channels: NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that lie in the same places.

    Attributes
    ----------
    channels
        Class of each channel, in ascending order (see `ChannelMap.classes`).
    places
        All places where they lie.
    layers
        The convolutions and linear layers that make them, in execution order.
    width
        Filters of one layer that one channel stands for: 1, or more where groups of a convolution are tied.
    """

    channels: Labels
    places: tuple[ChannelPlace, ...]
    layers: tuple[Op, ...]
    width: int

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.channels)


@dataclass(frozen=True)
class ChannelWork:
    """An op that does multiply-adds, fewer without channels: attention, matrix products, recurrent layers.

    Attributes
    ----------
    op
        The op.
    macs
        Its multiply-adds before anything is removed.
    dims
        Classes of the dimensions to whose extents they are proportional.
    """

    op: Op
    macs: int
    dims: Dims

    def macs_of(self, kept: NDArray[np.bool_]) -> int:
        """Multiply-adds when only these classes stay."""
        whole = max(1, math.prod(map(len, self.dims)))
        return self.macs // whole * math.prod(int(kept[dim].sum()) for dim in self.dims)

    def without_fixed(self) -> ChannelWork:
        """The same, counting only dimensions of which something may go."""
        return replace(self, dims=tuple(dim for dim in self.dims if (dim != FIXED).any()))


@dataclass(frozen=True)
class Layer(ChannelWork):
    """A convolution or linear layer: an op that does multiply-adds with a weight."""

    @property
    def outputs(self) -> Labels:
        """Classes of the weight's filters, its dimension 0."""
        return self.dims[0]

    @property
    def inputs(self) -> Labels:
        """Classes of the channels that each filter reads, the weight's dimension 1."""
        return self.dims[1]


@dataclass(frozen=True)
class ChannelMap:
    """The channels of a graph.

    Attributes
    ----------
    groups
        All groups that can shrink, in execution order of their first layers.
    layers
        All layers.
    products
        All other ops with multiply-adds that channels change: attention, matrix products, recurrent layers.
    classes
        Labels of every value, one array for each dimension: the class of each index, `FIXED` (0) where it must stay.
    count
        Number of classes, `FIXED` included; a mask of what stays has this length.
    other_macs
        Multiply-adds that no channel changes.
    held
        Layers none of whose filters can go, with reasons.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    products: tuple[ChannelWork, ...]
    classes: dict[Value, Dims]
    count: int
    other_macs: int
    held: tuple[tuple[Op, str], ...]

    def macs(self, kept: NDArray[np.bool_]) -> int:
        """Multiply-adds of the graph when only these classes stay."""
        return self.other_macs + sum(one.macs_of(kept) for one in (*self.layers, *self.products))


def find_channels(graph: Graph) -> ChannelMap:
    """Find what can be removed together; ``graph`` has no fused ops.

    Which values are zero without some channels depends on what can go at all, such as positions of a sequence. So what
    must stay even if all values were is found first.
    """
    mixed = mixed_dims(graph)
    optimistic = Atoms(mixed)
    optimistic.vanishing.update(value for op in graph.ops for value in op.results)
    _trace(graph, optimistic)
    held = optimistic.resolve().held
    atoms = Atoms(mixed, held)
    labels, weights = _trace(graph, atoms)
    atoms.pin(np.flatnonzero(held), "tied to channels that must stay")
    return _channel_map(graph, labels, weights, atoms)


def _trace(graph: Graph, atoms: Atoms) -> tuple[dict[Value, Dims], dict[str, Dims]]:
    """Labels of all values, and of all weights by id."""
    labels: dict[Value, Dims] = {value: tuple(map(fixed, value.shape)) for value in graph.inputs}
    atoms.vanishing.update(graph.inputs)
    weights: dict[str, Dims] = {}
    for op in graph.ops:
        flow, operands = flow_of(op), [labels[value] for value in op.inputs]
        traced = flow.trace(op, operands, atoms)
        if isinstance(op, WeightOp):
            traced = weights.setdefault(op.attrs.id, traced)  # a shared weight has one set of labels
        labels[op.results[0]] = traced
        if flow.vanishes(op, operands, traced, atoms):
            atoms.vanishing.add(op.results[0])
        labels.update((result, tuple(map(fixed, result.shape))) for result in op.results[1:])
    for index, value in enumerate(graph.outputs):
        for found in labels[value]:
            atoms.pin(found, f"they reach output {index} of the graph")
    return labels, weights


def _channel_map(graph: Graph, labels: dict[Value, Dims], weights: dict[str, Dims], atoms: Atoms) -> ChannelMap:
    resolved = atoms.resolve()
    classes = {value: tuple(resolved.free[found] for found in dims) for value, dims in labels.items()}
    works = [ChannelWork(op, macs, _scales(op, classes)) for op in graph.ops if (macs := op.macs())]
    layers = tuple(Layer(one.op, one.macs, one.dims) for one in works if one.op.channels is ChannelFlow.PRODUCES)
    free = (one.without_fixed() for one in works if one.op.channels is not ChannelFlow.PRODUCES)
    products = tuple(one for one in free if one.dims)
    places = [(id, dim, resolved.free[found]) for id, dims in weights.items() for dim, found in enumerate(dims)]
    pieces = [resolved.free[found] for found in atoms.pieces]
    groups = tuple(_groups(layers, places, pieces))
    return ChannelMap(
        groups=groups,
        layers=layers,
        products=products,
        classes=classes,
        count=len(resolved.free),
        other_macs=graph.cost().macs - sum(one.macs for one in (*layers, *products)),
        held=tuple(_held(layers, groups, labels, resolved)),
    )


def _scales(op: Op, classes: dict[Value, Dims]) -> Dims:
    return flow_of(op).scales(op, [classes[value] for value in op.inputs], classes[op.results[0]])


def _held(
    layers: Iterable[Layer], groups: Iterable[ChannelGroup], labels: dict[Value, Dims], resolved: Resolved
) -> Iterable[tuple[Op, str]]:
    free = np.concatenate([*(group.channels for group in groups), np.zeros(0, np.int64)])
    for layer in layers:
        if not np.isin(layer.outputs, free).any():
            reason = resolved.reason(labels[layer.op.inputs[1]][0])
            alone = "its weight is no constant" if (layer.outputs == FIXED).all() else "they can only go all at once"
            yield layer.op, reason or alone


def _groups(
    layers: tuple[Layer, ...], places: list[tuple[str, int, Labels]], pieces: list[Labels]
) -> Iterable[ChannelGroup]:
    """Classes by the set of places in which they lie; parts of dimensions that are read alone count as places too.

    What would be the only channel of a group is left out, since it could not go.
    """
    lies: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate([*(one for _, _, one in places), *pieces]):
        for channel in np.unique(found[found != FIXED]).tolist():
            lies[channel].append(index)
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for channel, indices in lies.items():
        members[tuple(indices)].append(channel)
    groups = []
    for common, channels in members.items():
        if len(channels) == 1:
            continue
        group = np.array(sorted(channels), np.int64)
        makers = [(at, layer) for at, layer in enumerate(layers) if np.isin(layer.outputs, group).any()]
        if not makers:
            continue  # parameters that no layer's channels meet, such as constants of an unused branch
        lying = tuple(_place(*places[index], group) for index in common if index < len(places))
        width = max(_width(layer.outputs, group) for _, layer in makers)
        groups.append((makers[0][0], ChannelGroup(group, lying, tuple(layer.op for _, layer in makers), width)))
    return [group for _, group in sorted(groups, key=lambda one: one[0])]


def _place(weight: str, dim: int, classes: Labels, group: Labels) -> ChannelPlace:
    at = np.searchsorted(group, classes).clip(max=len(group) - 1)
    return ChannelPlace(weight, dim, np.where(group[at] == classes, at, -1))


def _width(outputs: Labels, group: Labels) -> int:
    _, counts = np.unique(outputs[np.isin(outputs, group)], return_counts=True)
    return int(counts.max())
