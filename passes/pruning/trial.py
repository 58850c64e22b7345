"""Is a group worth shrinking? Its layers alone, with all of its channels and with those that stay, for the referee.

A group's channels are made by some layers and read by others; all of these become smaller. They are compared as they
are when every other group has been decided, so that a layer between two groups is timed at its final extents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import DType, Graph, Op, TensorType, Value, is_constant
from ...ir.ops import WeightOp
from ..matching import numbers
from ..referee import Pair, Referee, Trial
from .flow import Kept, cut
from .flows import flow_of
from .groups import ChannelGroup, ChannelMap
from .select import stay


def judge_groups(
    graph: Graph,
    channels: ChannelMap,
    masks: Sequence[NDArray[np.bool_]],
    referee: Referee,
    describe: Callable[[ChannelGroup, NDArray[np.bool_]], str],
) -> tuple[str, ...]:
    """Ask the referee for each group that shrinks; sets the masks of those to true that shall not.

    Parameters
    ----------
    masks
        For each group the channels that stay.
    describe
        What stays of a group, for the report.

    Returns
    -------
    A line for each group that was asked for.
    """
    shrinking = [(group, mask) for group, mask in zip(channels.groups, masks, strict=True) if not mask.all()]
    planned = stay(channels, masks)  # what is timed as long as every group may shrink
    referee.prepare(pair for group, _ in shrinking for pair in _pairs(group, channels, planned))
    notes = []
    for group, mask in shrinking:
        verdict = referee.judge(Trial(describe(group, mask), tuple(_pairs(group, channels, stay(channels, masks)))))
        notes.append(verdict.note)
        if not verdict.stays:
            mask[:] = True
    return tuple(notes)


def _pairs(group: ChannelGroup, channels: ChannelMap, kept: NDArray[np.bool_]) -> Iterator[Pair]:
    """The layers that a group changes, each with all of its channels, and as they are ``kept``."""
    whole = kept.copy()
    whole[group.channels] = True
    for work in (*channels.layers, *channels.products):
        if np.isin(np.concatenate(work.dims), group.channels).any():
            yield layer_alone(work.op, channels, whole), layer_alone(work.op, channels, kept)


def layer_alone(op: Op, channels: ChannelMap, kept: NDArray[np.bool_]) -> Graph:
    """A graph of one layer, of which only some classes of channels stay (see `ChannelMap.classes`)."""
    masks: dict[Value, Kept] = {
        value: tuple(kept[classes] for classes in channels.classes[value]) for value in (*op.inputs, op.results[0])
    }
    shapes = {value: tuple(int(mask.sum()) for mask in dims) for value, dims in masks.items()}
    variable = [value for value in dict.fromkeys(op.inputs) if not is_constant(value)]
    names = [(f"x{index}", TensorType(shapes[value], value.type.dtype)) for index, value in enumerate(variable)]
    graph = Graph(op.name, names)
    mapping = dict(zip(variable, graph.inputs, strict=True))
    for value in dict.fromkeys(op.inputs):
        if value not in mapping:
            mapping[value] = _constant(graph, numbers(value), masks[value])
    operands = [None if value is None else mapping[value] for value in op.operands]
    attrs = flow_of(op).resize(op, [masks[value] for value in op.inputs], masks[op.results[0]])
    graph.outputs = (graph.append(type(op)(operands, attrs, location=op.location)).results[0],)
    return graph


def _constant(graph: Graph, tensor: torch.Tensor, masks: Kept) -> Value:
    tensor = cut(tensor, masks)
    id = graph.weights.add(tensor, "weight")
    type = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
    return graph.append(WeightOp((), WeightOp.attrs_type(id=id, type=type))).results[0]
