"""The meaning of pruning: the same network with zeros in place of what was removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tersor.ir import Graph, Rewriter, structurally_equal, verify
from tersor.ir.ops import WeightOp
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.passes.pruning import ChannelMap, find_channels
from tersor.passes.pruning.budgets import macs_budget
from tersor.passes.pruning.select import Limits, Wanted, select, stay
from tersor.passes.pruning.shrink import shrink

Masks = list[np.ndarray]


def random_masks(channels: ChannelMap, seed: int, share: float = 0.5) -> Masks:
    """Masks that keep about ``share`` of each group, and at least one channel."""
    generator = np.random.default_rng(seed)
    masks = [generator.random(group.size) < share for group in channels.groups]
    for mask in masks:
        mask[generator.integers(len(mask))] = True
    return masks


def zeroed(graph: Graph, channels: ChannelMap, masks: Masks) -> Graph:
    """A copy with zeros wherever a weight belongs to a channel that goes."""
    tensors = {id: tensor.clone() for id, tensor in graph.weights.items()}
    for group, mask in zip(channels.groups, masks, strict=True):
        for place in group.places:
            gone = (place.channels >= 0) & ~mask[place.channels]
            tensors[place.weight].movedim(place.dim, 0)[torch.from_numpy(gone)] = 0
    copy = graph.clone()
    copy.weights = type(graph.weights)(tensors)
    return copy


def pruned(graph: Graph, channels: ChannelMap, masks: Masks) -> Graph:
    """A copy without the channels that go."""
    copy, values = graph.clone_with_map()
    mapped = {values[value]: dims for value, dims in channels.classes.items()}
    rewriter = Rewriter(copy)
    assert rewriter.commit("test", copy.ops[-1])
    shrink(copy, ChannelMap(channels.groups, (), (), mapped, channels.count, 0, ()), stay(channels, masks), rewriter)
    copy.weights.keep(op.attrs.id for op in copy.ops if isinstance(op, WeightOp))
    return copy


def check_exact(graph: Graph, *, seed: int = 0, share: float = 0.5, tolerance: float = 1e-5) -> ChannelMap:
    """Prune channels drawn at random, and compare with zeroing them; returns the groups for further questions."""
    channels = find_channels(graph)
    masks = random_masks(channels, seed, share)
    small = pruned(graph, channels, masks)
    verify(small, weights=True)
    inputs = seeded_inputs(graph, seed)
    worst = deviation(zeroed(graph, channels, masks).evaluate(*inputs), small.evaluate(*inputs))
    assert not worst.exceeds(tolerance), str(worst)
    kept = stay(channels, masks)
    assert small.cost().macs == channels.macs(kept)
    assert structurally_equal(small, graph) == bool(kept.all())
    # Constants are left out: what batch norms return in training is an empty one.
    computed = [value for op in small.ops if op.inputs for value in op.results]
    assert all(min(value.shape, default=1) > 0 for value in computed)
    return channels


def select_macs(channels: ChannelMap, scores: Sequence[np.ndarray], macs: float) -> Masks:
    """What ``prune-channels{macs=…}`` keeps."""
    return select(channels, scores, Wanted((macs_budget(channels, macs),), Limits(0.1, 1)))
