"""Removes channels from weights, attributes and types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Attrs, Graph, Op, Rewriter, TensorType, Value
from ...ir.ops import FullOp, MulOp, WeightOp
from ..matching import weight_name
from .flow import cut
from .flows import flow_of
from .groups import ChannelMap

Numbers = Mapping[str, torch.Tensor]  # other numbers of weights, by id, in the extents before anything is removed


def shrink(
    graph: Graph, channels: ChannelMap, kept: NDArray[np.bool_], rewriter: Rewriter, numbers: Numbers | None = None
) -> None:
    """Remove channels.

    Parameters
    ----------
    kept
        Mask over `ChannelMap.classes` of the channels that stay.
    rewriter
        In the state after a commit.
    numbers
        What weights become besides, before they are cut.
    """
    numbers = numbers or {}
    masks = {value: tuple(kept[classes] for classes in dims) for value, dims in channels.classes.items()}
    fresh: dict[str, str] = {}  # ids of new weights: a shared weight is cut once
    for op in graph.ops:
        operands, results = [masks[value] for value in op.inputs], [masks[value] for value in op.results]
        is_whole = all(mask.all() for dims in (*operands, *results) for mask in dims)
        if isinstance(op, WeightOp):
            if not is_whole or op.attrs.id in numbers:
                rewriter.update(op, _cut(graph, op, results[0], "refit" if is_whole else "pruned", numbers, fresh))
        elif not is_whole:
            flow = flow_of(op)
            rewriter.update(op, flow.resize(op, operands, results[0]))
            factor = flow.correction(op, operands)
            if factor != 1:
                masks[_scale(op, factor, rewriter)] = results[0]


def _scale(op: Op, factor: float, rewriter: Rewriter) -> Value:
    """Multiply what all readers of ``op`` get; returns it."""
    made = op.results[0]
    attrs = FullOp.attrs_type(value=factor, dtype=made.type.dtype)
    scalar = rewriter.create(FullOp, (), attrs, at=op).result
    scaled = rewriter.create(MulOp, (made, scalar), at=op, after=True)
    for use in made.uses:
        if use.user is not scaled:
            use.user.set_operand(use.index, scaled.result)
    return scaled.result


def _cut(
    graph: Graph,
    op: WeightOp,
    masks: Sequence[NDArray[np.bool_]],
    suffix: str,
    numbers: Numbers,
    fresh: dict[str, str],
) -> Attrs:
    """Attributes that name the weight without what goes, which is added to the store the first time."""
    id, dtype = op.attrs.id, op.attrs.type.dtype
    if id not in fresh:
        tensor = cut(numbers.get(id, graph.weights[id]), masks)
        fresh[id] = graph.weights.add(tensor, weight_name(op.result, suffix))
    return WeightOp.attrs_type(id=fresh[id], type=TensorType(tuple(graph.weights[fresh[id]].shape), dtype))


def shrunk(graph: Graph, channels: ChannelMap, kept: NDArray[np.bool_], numbers: Numbers | None = None) -> Graph:
    """A copy of ``graph`` without the channels that go."""
    copy, mapping = graph.clone_with_map()
    classes = {mapping[value]: dims for value, dims in channels.classes.items()}
    rewriter = Rewriter(copy)
    rewriter.commit("prune-channels", copy.ops[0])
    shrink(copy, replace(channels, classes=classes), kept, rewriter, numbers)
    return copy


def with_numbers(graph: Graph, numbers: Numbers) -> Graph:
    """A copy of ``graph`` with other numbers in some of its weights, under the same ids."""
    copy = graph.clone()
    copy.weights = graph.weights.replaced(numbers)
    return copy


def without_channels(
    graph: Graph, channels: ChannelMap, masks: Sequence[NDArray[np.bool_]], numbers: Numbers
) -> dict[str, torch.Tensor]:
    """``numbers``, with zeros wherever a weight belongs to a channel that goes."""
    result = dict(numbers)
    for group, mask in zip(channels.groups, masks, strict=True):
        if mask.all():
            continue
        for place in group.places:
            gone = (place.channels >= 0) & ~mask[place.channels]
            tensor = result.get(place.weight, graph.weights[place.weight]).clone()
            tensor.movedim(place.dim, 0)[torch.from_numpy(gone)] = 0
            result[place.weight] = tensor
    return result
