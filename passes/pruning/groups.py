"""Channel groups: which slices of which weights can only be removed together.

Labels flow through the graph op by op (`flows`): a layer's filters make new ones, everything between layers passes them
on, joins or splits them, and the next layer's kernels, biases and normalisation parameters are tied to what they meet.
What is tied is one channel of the whole network, wherever it lies: an index map from each dimension of each weight to
channels. Channels that lie in the same dimensions of the same weights form a group, for example the 64 channels of a
residual stream with all layers that write to it and read it. Groups are independent of one another, and as long as one
channel of every group stays, no tensor becomes empty.

Method: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, with index maps in place of pairs of layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir import ChannelFlow, Graph, Op, Value
from ...ir.ops import WeightOp
from .atoms import FIXED, Atoms, Labels, Resolved, fixed
from .flows import Dims, flow_of


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
class Layer:
    """An op that does multiply-adds with a weight.

    Attributes
    ----------
    op
        The convolution or linear layer.
    macs
        Its multiply-adds before anything is removed.
    outputs, inputs
        Classes of the weight's filters (dimension 0) and of the channels that each of them reads (dimension 1).
    rows
        Classes of the dimensions before the channels: a linear layer may have channels of others for its rows.
    """

    op: Op
    macs: int
    outputs: Labels
    inputs: Labels
    rows: Dims = ()

    def macs_of(self, kept: NDArray[np.bool_]) -> int:
        """Multiply-adds when only these classes stay: each kernel does the same number."""
        dims = (self.outputs, self.inputs, *self.rows)
        return self.macs // max(1, math.prod(map(len, dims))) * math.prod(int(kept[dim].sum()) for dim in dims)


@dataclass(frozen=True)
class ChannelMap:
    """The channels of a graph.

    Attributes
    ----------
    groups
        All groups that can shrink, in execution order of their first layers.
    layers
        All layers.
    classes
        Labels of every value, one array for each dimension: the class of each index, `FIXED` (0) where it must stay.
    count
        Number of classes, `FIXED` included; a mask of what stays has this length.
    other_macs
        Multiply-adds that no channel changes (attention, matrix products).
    held
        Layers none of whose filters can go, with reasons.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    classes: dict[Value, Dims]
    count: int
    other_macs: int
    held: tuple[tuple[Op, str], ...]

    def macs(self, kept: NDArray[np.bool_]) -> int:
        """Multiply-adds of the graph when only these classes stay."""
        return self.other_macs + sum(layer.macs_of(kept) for layer in self.layers)


def find_channels(graph: Graph) -> ChannelMap:
    """Find what can be removed together; ``graph`` has no fused ops."""
    atoms = Atoms()
    labels: dict[Value, Dims] = {value: tuple(map(fixed, value.shape)) for value in graph.inputs}
    weights: dict[str, Dims] = {}
    for op in graph.ops:
        traced = flow_of(op).trace(op, [labels[value] for value in op.inputs], atoms)
        if isinstance(op, WeightOp):
            traced = weights.setdefault(op.attrs.id, traced)  # a shared weight has one set of labels
        labels[op.results[0]] = traced
        labels.update((result, tuple(map(fixed, result.shape))) for result in op.results[1:])
    for index, value in enumerate(graph.outputs):
        for found in labels[value]:
            atoms.pin(found, f"they reach output {index} of the graph")
    return _channel_map(graph, labels, weights, atoms)


def _channel_map(graph: Graph, labels: dict[Value, Dims], weights: dict[str, Dims], atoms: Atoms) -> ChannelMap:
    resolved = atoms.resolve()
    classes = {value: tuple(resolved.free[found] for found in dims) for value, dims in labels.items()}
    makers = [op for op in graph.ops if op.channels is ChannelFlow.PRODUCES]
    layers = tuple(Layer(op, op.macs(), *_layer_classes(op, classes)) for op in makers)
    places = [(id, dim, resolved.free[found]) for id, dims in weights.items() for dim, found in enumerate(dims)]
    pieces = [resolved.free[found] for found in atoms.pieces]
    return ChannelMap(
        groups=tuple(_groups(layers, places, pieces)),
        layers=layers,
        classes=classes,
        count=len(resolved.free),
        other_macs=graph.cost().macs - sum(layer.macs for layer in layers),
        held=tuple(_held(layers, labels, resolved)),
    )


def _layer_classes(op: Op, classes: dict[Value, Dims]) -> tuple[Labels, Labels, Dims]:
    outputs, inputs = classes[op.inputs[1]][:2]
    return outputs, inputs, classes[op.inputs[0]][: op.channel_axis % op.inputs[0].type.rank]


def _held(layers: Iterable[Layer], labels: dict[Value, Dims], resolved: Resolved) -> Iterable[tuple[Op, str]]:
    for layer in layers:
        if (layer.outputs == FIXED).all():
            yield layer.op, resolved.reason(labels[layer.op.inputs[1]][0]) or "its weight is no constant"


def _groups(
    layers: tuple[Layer, ...], places: list[tuple[str, int, Labels]], pieces: list[Labels]
) -> Iterable[ChannelGroup]:
    """Classes by the set of places in which they lie; parts of dimensions that are read alone count as places too."""
    lies: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate([*(one for _, _, one in places), *pieces]):
        for channel in np.unique(found[found != FIXED]).tolist():
            lies[channel].append(index)
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for channel, indices in lies.items():
        members[tuple(indices)].append(channel)
    groups = []
    for common, channels in members.items():
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
