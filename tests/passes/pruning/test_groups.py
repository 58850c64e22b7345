"""Which channels go together, one kind of coupling after another, and that removing them is zeroing them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from tersor.frontend import from_torch
from tersor.ir import Graph, Op, TensorType, Value
from tersor.ir.ops import (
    AdaptiveAvgPool2dOp,
    AddOp,
    AttentionOp,
    ChannelShuffleOp,
    ConcatOp,
    Conv2dOp,
    ExpandOp,
    LayerNormOp,
    LinearOp,
    MatmulOp,
    MaxPool2dOp,
    MeanOp,
    MulOp,
    PadOp,
    PermuteOp,
    ReluOp,
    ReshapeOp,
    SigmoidOp,
    SliceOp,
    SoftmaxOp,
)
from tersor.passes.pruning import ChannelMap
from tersor.tests.passes.pruning.zeroing import check_exact
from tersor.tests.random_graphs import GraphBuilder, random_graphs


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (2, 3, 6, 6))})


def start(b: GraphBuilder, channels: int) -> Value:
    return b.op(SigmoidOp, b.conv(b.graph.inputs[0], channels, location="start"))  # not 0 where a channel is zero


def finish(b: GraphBuilder, *values: Value) -> Graph:
    """A layer that reads each value, so that its channels are free."""
    return b.done(*(b.conv(value, 2, 1, location="end") for value in values))


def sizes(channels: ChannelMap) -> list[int]:
    return [group.size for group in channels.groups]


def locations(channels: ChannelMap) -> list[set[str]]:
    return [{op.location for op in group.layers} for group in channels.groups]


def test_chain():
    b = builder()
    x = b.op(MaxPool2dOp, b.conv(start(b, 8), 6), kernel=(2, 2), stride=(2, 2))
    channels = check_exact(finish(b, x))
    assert sizes(channels) == [8, 6]
    assert locations(channels) == [{"start"}, {"conv"}]
    assert [op.location for op, _ in channels.held] == ["end"]
    assert channels.held[0][1] == "they reach output 0 of the graph"


def test_residual_addition_ties_channels():
    b = builder()
    x = start(b, 8)
    channels = check_exact(finish(b, b.op(AddOp, b.conv(x, 8, location="branch"), x)))
    assert sizes(channels) == [8]
    assert locations(channels) == [{"start", "branch"}]


def test_batch_norm_goes_with_its_layer():
    b = builder()
    channels = check_exact(finish(b, b.op(ReluOp, b.batch_norm(b.conv(b.graph.inputs[0], 8)))))
    (group,) = channels.groups
    named = {place.weight.partition(".")[2] for place in group.places if place.weight.startswith("bn")}
    assert named == {"mean", "variance", "gamma", "beta"}


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int):
    b = builder()
    x = b.conv(start(b, 6), 6 * multiplier, groups=6, location="depthwise")
    channels = check_exact(finish(b, x))
    assert sizes(channels) == [6]
    assert channels.groups[0].width == multiplier


def test_grouped_convolution_keeps_groups_equal():
    b = builder()
    channels = check_exact(finish(b, b.conv(start(b, 12), 16, groups=4, location="grouped")))
    assert sizes(channels) == [3, 4]
    assert [group.width for group in channels.groups] == [4, 4]


def test_transposed_convolutions_and_volumes_from_pytorch():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ConvTranspose2d(8, 12, 4, 2, bias=False),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 3, groups=12),
        nn.Unflatten(2, (2, 6)),
        nn.Conv3d(12, 8, 2),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(8, 5, 1),
    )
    channels = check_exact(from_torch(model, (torch.randn(2, 3, 6, 6),)))
    assert [group.size for group in channels.groups] == [8, 12, 8]


def test_concat_has_offsets():
    b = builder()
    x = start(b, 4)
    y = b.conv(x, 6, location="y")
    channels = check_exact(finish(b, b.op(ConcatOp, x, y, x, axis=1)))
    assert sizes(channels) == [4, 6]
    (place,) = (place for place in channels.groups[1].places if place.weight == "end.weight")
    assert place.channels.tolist() == [-1] * 4 + list(range(6)) + [-1] * 4


def test_slices_have_offsets_and_none_becomes_empty():
    b = builder()
    x = start(b, 10)
    parts = [b.op(SliceOp, x, axis=1, start=a, stop=z) for a, z in ((0, 4), (4, 10))]
    graph = finish(b, b.op(ConcatOp, *reversed(parts), axis=1))
    assert sizes(check_exact(graph, share=0.1)) == [4, 6]


def test_overlapping_slices():
    b = builder()
    x = start(b, 10)
    channels = check_exact(finish(b, *(b.op(SliceOp, x, axis=1, start=a, stop=a + 6) for a in (0, 4))), share=0.1)
    assert sorted(sizes(channels)) == [2, 4, 4]


def test_strided_slice_is_refused():
    b = builder()
    channels = check_exact(finish(b, b.op(SliceOp, start(b, 8), axis=1, start=0, stop=8, step=2)))
    assert not channels.groups
    assert "takes every 2th of them" in channels.held[0][1]


def shuffled(b: GraphBuilder, x: Value, groups: int) -> Value:
    batch, count, *positions = x.shape
    split = b.op(ReshapeOp, x, shape=(batch, groups, count // groups, *positions))
    return b.op(ReshapeOp, b.op(PermuteOp, split, dims=(0, 2, 1, 3, 4)), shape=x.shape)


@pytest.mark.parametrize("one_op", [False, True])
def test_channel_shuffle_ties_its_groups(one_op: bool):
    b = builder()
    x = start(b, 6)
    y = b.conv(x, 6, location="y")
    if one_op:
        taken = b.op(ChannelShuffleOp, x, y, groups=2, start=0, stop=6)
    else:
        taken = b.op(SliceOp, shuffled(b, b.op(ConcatOp, x, y, axis=1), 2), axis=1, start=0, stop=6)
    channels = check_exact(finish(b, taken), share=0.4)
    assert locations(channels) == [{"start", "y"}] * len(channels.groups)
    assert sum(sizes(channels)) == 6


def test_flatten_repeats_channels():
    b = builder()
    x = b.op(ReshapeOp, start(b, 5), shape=(2, 5 * 36))
    channels = check_exact(b.done(b.linear(x, 4)))
    (place,) = (place for place in channels.groups[0].places if place.weight == "fc.weight")
    assert place.channels.tolist() == [channel for channel in range(5) for _ in range(36)]


def test_flatten_and_back():
    b = builder()
    x = b.op(ReshapeOp, b.op(ReshapeOp, start(b, 5), shape=(2, 180)), shape=(2, 5, 6, 6))
    assert sizes(check_exact(finish(b, x))) == [5]


def test_global_pooling_and_squeezing():
    b = builder()
    pooled = b.op(ReshapeOp, b.op(AdaptiveAvgPool2dOp, start(b, 5), size=(1, 1)), shape=(2, 5))
    mean = b.op(MeanOp, b.conv(b.graph.inputs[0], 7), axes=(2, 3))
    assert sizes(check_exact(b.done(b.linear(pooled, 4), b.linear(mean, 4)))) == [5, 7]


def test_squeeze_and_excitation():
    b = builder()
    x = start(b, 8)
    squeezed = b.op(ReluOp, b.conv(b.op(MeanOp, x, axes=(2, 3), keepdim=True), 4, 1, location="squeeze"))
    gate = b.op(SigmoidOp, b.conv(squeezed, 8, 1, location="excite"))
    channels = check_exact(finish(b, b.op(MulOp, x, gate)))
    assert sizes(channels) == [8, 4]
    assert locations(channels) == [{"start", "excite"}, {"squeeze"}]


def test_shared_weight_is_cut_once():
    b = builder()
    x = start(b, 6)
    shared = b.weight(6, 6, 3, 3, hint="shared")
    attrs = {"padding": (1, 1, 1, 1)}
    y = b.op(Conv2dOp, b.op(ReluOp, b.op(Conv2dOp, x, shared, **attrs)), shared, **attrs)
    channels = check_exact(finish(b, y))
    assert sizes(channels) == [6]
    assert {place.dim for place in channels.groups[0].places if place.weight == "shared"} == {0, 1}


def test_padded_channels():
    b = builder()
    x = b.op(PadOp, start(b, 4), before=(0, 2, 0, 0), after=(0, 2, 1, 1), value=0.5)
    y = b.conv(b.graph.inputs[0], 8, location="y")
    y = b.op(PadOp, y, before=(0, 0, 0, 0), after=(0, 0, 1, 1))
    channels = check_exact(finish(b, b.op(AddOp, x, y)))
    assert locations(channels) == [{"y"}, {"start", "y"}] or locations(channels) == [{"start", "y"}, {"y"}]
    assert sum(sizes(channels)) == 8


def test_expanded_channels():
    b = builder()
    x = b.op(MeanOp, start(b, 4), axes=(2, 3), keepdim=True)
    assert sizes(check_exact(finish(b, b.op(ExpandOp, x, shape=(2, 4, 5, 5))))) == [4]


def test_linear_layers_of_a_transformer():
    b = builder(2, 5, 8)
    (x,) = b.graph.inputs
    hidden = b.op(SigmoidOp, b.linear(b.op(LayerNormOp, x, dims=1), 16))
    channels = check_exact(b.done(b.op(AddOp, b.linear(hidden, 8), x)))
    assert sizes(channels) == [16]


@pytest.mark.parametrize("kind", [LayerNormOp, SoftmaxOp, MeanOp, MatmulOp, AttentionOp])
def test_ops_that_read_all_channels_together_refuse(kind: type[Op]):
    b = builder(2, 5, 8)
    x = b.linear(b.graph.inputs[0], 8)
    made: dict[type[Op], Callable[[], Value]] = {
        LayerNormOp: lambda: b.op(LayerNormOp, b.op(SigmoidOp, x), dims=1),
        SoftmaxOp: lambda: b.op(SoftmaxOp, x, axis=2),
        MeanOp: lambda: b.op(MeanOp, b.op(SigmoidOp, x), axes=(2,), keepdim=True),
        MatmulOp: lambda: b.op(MatmulOp, b.op(SigmoidOp, x), b.op(SigmoidOp, x), transpose_rhs=True),
        AttentionOp: lambda: b.op(AttentionOp, x, x, x),
    }
    channels = check_exact(b.done(b.linear(made[kind](), 4)))
    assert not channels.groups
    reason = channels.held[0][1]
    assert kind.name in reason and ("reads all channels together" in reason or "combines them" in reason)


def test_channels_added_to_an_input_stay():
    b = builder()
    channels = check_exact(finish(b, b.op(AddOp, b.conv(b.graph.inputs[0], 3), b.graph.inputs[0])))
    assert not channels.groups
    assert "tied to channels that must stay, at add" in channels.held[0][1]


def test_heads_split_from_channels():
    b = builder(2, 5, 8)
    q, k, v = (
        b.op(PermuteOp, b.op(ReshapeOp, b.linear(b.graph.inputs[0], 8), shape=(2, 5, 2, 4)), dims=(0, 2, 1, 3))
        for _ in range(3)
    )
    joined = b.op(ReshapeOp, b.op(PermuteOp, b.op(AttentionOp, q, k, v), dims=(0, 2, 1, 3)), shape=(2, 5, 8))
    (group,) = check_exact(b.done(b.linear(joined, 4))).groups
    assert (group.size, group.width) == (2, 4)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_graphs(max_size=20))
def test_random_graphs(graph: Graph):
    check_exact(graph, tolerance=1e-4)


def test_weight_shared_with_a_layer_that_must_keep_its_inputs():
    b = builder(4, 6)
    shared = b.weight(6, 6, hint="shared")
    x = b.op(LinearOp, b.op(LinearOp, b.graph.inputs[0], shared), shared)
    hidden = b.op(LinearOp, x, b.weight(5, 6, hint="hidden"))
    assert sizes(check_exact(b.done(b.op(LinearOp, hidden, b.weight(3, 5, hint="out"))))) == [5]
