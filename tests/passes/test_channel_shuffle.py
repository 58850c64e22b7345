"""Channel shuffles, with the concatenation before and the slices after them."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import IRError, TensorType, Value
from tersor.ir.ops import ChannelShuffleOp, ConcatOp, PermuteOp, ReluOp, ReshapeOp, SliceOp
from tersor.tests.checks import body, kinds, run_checked
from tersor.tests.random_graphs import GraphBuilder

RULE = "channel-shuffle"


def builder(*channels: int, batch: int = 1) -> GraphBuilder:
    return GraphBuilder({f"x{i}": TensorType((batch, count, 3, 2)) for i, count in enumerate(channels)})


def shuffle(b: GraphBuilder, x: Value, groups: int, dims: tuple[int, ...] = (0, 2, 1, 3, 4)) -> Value:
    batch, channels, *spatial = x.shape
    split = b.op(ReshapeOp, x, shape=(batch, groups, channels // groups, *spatial))
    return b.op(ReshapeOp, b.op(PermuteOp, split, dims=dims), shape=x.shape)


def channels(b: GraphBuilder, x: Value, start: int, stop: int, step: int = 1) -> Value:
    return b.op(SliceOp, x, axis=1, start=start, stop=stop, step=step)


def test_a_unit_of_shufflenet():
    b = builder(6, 6)
    shuffled = shuffle(b, b.op(ConcatOp, *b.graph.inputs, axis=1), 2)
    graph = run_checked(b.done(channels(b, shuffled, 0, 6), channels(b, shuffled, 6, 12)), RULE, fires=RULE).graph
    expected = """
        graph @test(%x0: f32[1,6,3,2], %x1: f32[1,6,3,2]) {
        %0 = channel_shuffle(%x0, %x1) {groups=2, start=0, stop=6} : f32[1,6,3,2] rule("channel-shuffle")
        %1 = channel_shuffle(%x0, %x1) {groups=2, start=6, stop=12} : f32[1,6,3,2] rule("channel-shuffle")
        return %0, %1
        }"""
    assert body(str(graph)) == body(expected)


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_as_torch_shuffles(groups: int, batch: int):
    b = builder(12, batch=batch)
    graph = run_checked(b.done(shuffle(b, b.graph.inputs[0], groups)), RULE, fires=RULE).graph
    assert kinds(graph) == ["channel_shuffle"]
    x = torch.randn(batch, 12, 3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph.evaluate(x)[0], torch.nn.ChannelShuffle(groups)(x))


def test_a_concatenation_that_is_read_elsewhere_stays():
    b = builder(4, 4)
    joined = b.op(ConcatOp, *b.graph.inputs, axis=1)
    graph = run_checked(b.done(shuffle(b, joined, 2), b.op(ReluOp, joined)), RULE, fires=RULE).graph
    assert kinds(graph) == ["concat", "channel_shuffle", "relu"]


def test_slices_stay_when_the_whole_is_read_too():
    b = builder(8)
    shuffled = shuffle(b, b.graph.inputs[0], 2)
    graph = run_checked(b.done(channels(b, shuffled, 0, 4), b.op(ReluOp, shuffled)), RULE, fires=RULE).graph
    assert kinds(graph) == ["channel_shuffle", "slice", "relu"]


def test_slices_with_steps_stay():
    b = builder(8)
    graph = b.done(channels(b, shuffle(b, b.graph.inputs[0], 2), 0, 8, 2))
    assert kinds(run_checked(graph, RULE, fires=RULE).graph) == ["channel_shuffle", "slice"]


def test_other_permutes_are_left_alone():
    b = builder(4)
    graph = b.done(shuffle(b, b.graph.inputs[0], 2, dims=(0, 2, 1, 4, 3)))
    assert kinds(run_checked(graph, RULE).graph) == ["reshape", "permute", "reshape"]


def test_a_permute_that_is_read_elsewhere_is_left_alone():
    b = builder(4)
    whole = shuffle(b, b.graph.inputs[0], 2)
    graph = b.done(whole, b.op(ReluOp, whole.op.x))
    assert kinds(run_checked(graph, RULE).graph) == ["reshape", "permute", "reshape", "relu"]


@pytest.mark.parametrize(
    ("shapes", "attrs", "message"),
    [
        ([], (1, 0, 1), "needs 4-d parts, got none"),
        ([(1, 4, 2)], (1, 0, 1), "needs 4-d parts, got f32[1,4,2]"),
        ([(1, 4, 2, 2), (1, 4, 2, 3)], (2, 0, 8), "f32[1,4,2,2], f32[1,4,2,3] differ outside of the channels"),
        ([(1, 4, 2, 2)], (3, 0, 4), "does not fit 4 channels"),
        ([(1, 4, 2, 2)], (2, 0, 5), "does not fit 4 channels"),
        ([(1, 4, 2, 2)], (2, 2, 2), "does not fit 4 channels"),
    ],
)
def test_what_the_op_refuses(shapes, attrs, message: str):
    parts = [Value(TensorType(shape)) for shape in shapes]
    groups, start, stop = attrs
    with pytest.raises(IRError) as error:
        ChannelShuffleOp(parts, ChannelShuffleOp.attrs_type(groups=groups, start=start, stop=stop))
    assert message in str(error.value)
