"""Concatenations written by the kernels that make their parts, and slices of channels read in place."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import Graph, Value, ops
from tersor.ir.types import TensorType
from tersor.targets.codegen.lowering import Program
from tersor.targets.codegen.places import Place, resolve
from tersor.tests.random_graphs import GraphBuilder

from .compiled import check, compiled, lowered, templates


def builder(channels: int = 16, size: int = 5, batch: int = 1, **more: tuple[int, ...]) -> GraphBuilder:
    return GraphBuilder({"x": TensorType((batch, channels, size, size)), **{n: TensorType(s) for n, s in more.items()}})


def done(b: GraphBuilder, *outputs: Value) -> Graph:
    b.graph.outputs = outputs
    return b.graph


def concat(b: GraphBuilder, *parts: Value, axis: int = 1) -> Value:
    return b.op(ops.ConcatOp, *parts, axis=axis)


def channels(b: GraphBuilder, x: Value, start: int, stop: int, step: int = 1) -> Value:
    return b.op(ops.SliceOp, x, axis=1, start=start, stop=stop, step=step)


def places(program: Program) -> dict[str, Place]:
    """Where the results of concatenated or slicing ops lie, by the location of the op."""
    named = {value.op.location: value for value in program.places if value.op is not None}
    return {location: resolve(value, program.places) for location, value in named.items()}


# Concatenation ------------------------------------------------------------------------------------------------------


def test_producers_write_their_parts():
    b = builder()
    x = b.graph.inputs[0]
    joined = concat(b, b.conv(x, 32, location="a"), b.conv(x, 48, kernel=1, location="b"), b.conv(x, 16, location="c"))
    graph = done(b, b.conv(joined, 16, location="reader"))
    program = lowered(graph)
    assert "concat" not in templates(program)
    assert "copy" not in templates(program)
    positions = 5 * 5
    assert {name: place.offset for name, place in places(program).items()} == {
        "a": 0,
        "b": 32 * positions,
        "c": (32 + 48) * positions,
    }
    assert len({place.base for place in places(program).values()}) == 1
    check(graph)


def test_growing_concatenations_share_the_last_buffer():
    b = builder()
    grown = b.conv(b.graph.inputs[0], 16, location="first")
    for layer in range(4):
        grown = concat(b, grown, b.conv(grown, 16, kernel=1, location=f"layer{layer}"))
    graph = done(b, b.conv(grown, 16, kernel=1, location="reader"))
    program = lowered(graph)
    assert not {"concat", "copy"} & set(templates(program))
    assert {place.base.shape[1] for place in places(program).values()} == {80}
    assert {name: place.offset // (16 * 25) for name, place in places(program).items() if name} == {
        "first": 0,
        "layer0": 1,
        "layer1": 2,
        "layer2": 3,
        "layer3": 4,
    }
    check(graph)


def test_parts_are_read_by_others_too():
    b = builder()
    a = b.conv(b.graph.inputs[0], 16)
    c = b.op(ops.ReluOp, a)
    graph = done(b, b.op(ops.AddOp, concat(b, a, c), concat(b, c, b.conv(a, 16))), b.op(ops.MulOp, a, c))
    program = lowered(graph)
    assert templates(program).count("copy") == 1  # of the part that both concatenations contain
    check(graph)


def test_a_value_that_is_a_part_twice():
    b = builder()
    a = b.conv(b.graph.inputs[0], 32)
    graph = done(b, b.conv(concat(b, a, a), 16))
    assert templates(lowered(graph)).count("copy") == 1
    check(graph)


def test_graph_outputs_keep_their_own_buffers():
    b = builder()
    a = b.op(ops.ExpOp, b.graph.inputs[0])
    c = b.op(ops.TanhOp, b.graph.inputs[0])
    joined = concat(b, a, c)
    graph = done(b, a, joined)
    executable_outputs = check(graph)
    assert len({output.data_ptr() for output in executable_outputs}) == 2


def test_inputs_and_constants_are_copied():
    b = builder(y=(1, 16, 5, 5))
    x, y = b.graph.inputs
    graph = done(b, b.conv(concat(b, b.conv(x, 16), y, b.weight(1, 16, 5, 5)), 16))
    assert templates(lowered(graph)).count("copy") == 1  # of the constant; the input is relaid into its place
    check(graph)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_every_axis(axis: int):
    b = builder()
    a, c = (b.conv(b.graph.inputs[0], 16) for _ in range(2))
    graph = done(b, b.op(ops.ReluOp, concat(b, a, c, axis=axis)))
    assert ("concat" in templates(lowered(graph))) == (axis > 1)
    check(graph)


def test_several_images_are_interleaved_so_a_kernel_copies():
    b = builder(batch=2)
    a, c = (b.conv(b.graph.inputs[0], 16) for _ in range(2))
    graph = done(b, b.conv(concat(b, a, c), 16))
    assert "concat" in templates(lowered(graph))
    check(graph)


@pytest.mark.parametrize("batch", [1, 2])
def test_parts_that_end_within_a_channel_block_are_gathered(batch: int):
    b = builder(size=4, batch=batch)
    x = b.graph.inputs[0]
    graph = done(b, b.conv(concat(b, b.conv(x, 13), b.conv(x, 3), b.weight(batch, 24, 4, 4)), 16))
    program = lowered(graph)
    assert "channel_gather" in templates(program)
    assert templates(program).count("relayout") == 2  # of the input and of the output
    check(graph)


def test_the_last_part_may_end_within_a_channel_block():
    b = builder()
    x = b.graph.inputs[0]
    graph = done(b, b.conv(concat(b, b.conv(x, 16), b.conv(x, 13)), 16))
    assert not {"concat", "channel_gather", "copy"} & set(templates(lowered(graph)))
    check(graph)


@pytest.mark.parametrize("channels", [16, 12])
def test_a_constant_may_be_the_last_part(channels: int):
    """Its packed channels are more than it has, where they end within a block."""
    b = builder(size=8)
    half = b.op(ops.FullOp, value=0.5, shape=(1, channels, 8, 8))
    joined = concat(b, b.conv(b.graph.inputs[0], 32, location="conv"), half)
    graph = done(b, b.conv(joined, 16, kernel=1, location="reader"))
    program = lowered(graph)
    assert templates(program).count("copy") == 1
    assert set(places(program)) == {"conv"}
    check(graph)


def test_unaligned_parts_are_copied():
    b = GraphBuilder({"x": TensorType((1, 3))})
    x = b.graph.inputs[0]
    parts = [b.op(kind, x) for kind in (ops.ExpOp, ops.TanhOp, ops.NegOp)]
    graph = done(b, b.op(ops.ReluOp, concat(b, *parts)))
    assert "concat" in templates(lowered(graph))
    check(graph)


def test_plain_rows():
    b = GraphBuilder({"x": TensorType((1, 4, 32)), "token": TensorType((1, 1, 32))})
    x, token = b.graph.inputs
    joined = concat(b, token, b.op(ops.ExpOp, x), b.op(ops.PermuteOp, b.op(ops.TanhOp, x), dims=(0, 1, 2)))
    graph = done(b, b.linear(joined, 8))
    program = lowered(graph)
    assert "concat" not in templates(program)
    check(graph)


# Slices -------------------------------------------------------------------------------------------------------------


def test_whole_blocks_are_read_in_place():
    b = builder()
    wide = b.conv(b.graph.inputs[0], 72, location="wide")
    parts = [channels(b, wide, 0, 16), channels(b, wide, 16, 64), channels(b, wide, 64, 72)]
    graph = done(b, *(b.conv(part, 16) for part in parts))
    program = lowered(graph)
    assert set(templates(program)) <= {"conv2d", "winograd", "relayout"}
    assert sorted(place.offset for place in program.places.values()) == [0, 16 * 25, 64 * 25]
    check(graph)


def test_a_slice_of_a_slice_of_a_concatenation():
    b = builder()
    x = b.graph.inputs[0]
    joined = concat(b, b.conv(x, 32), b.conv(x, 32))
    inner = channels(b, channels(b, joined, 16, 64), 16, 32)
    graph = done(b, b.conv(inner, 16), b.conv(joined, 16))
    program = lowered(graph)
    assert set(templates(program)) <= {"conv2d", "winograd", "relayout"}
    check(graph)


@pytest.mark.parametrize(
    ("start", "stop", "step", "batch"),
    [(16, 48, 1, 2), (4, 36, 1, 1), (0, 44, 1, 1), (1, 64, 2, 1)],
    ids=["two images", "starts within a block", "ends within a block", "every second channel"],
)
def test_other_slices_are_gathered(start: int, stop: int, step: int, batch: int):
    b = builder(batch=batch)
    wide = b.conv(b.graph.inputs[0], 64)
    graph = done(b, b.conv(channels(b, wide, start, stop, step), 16))
    assert "channel_gather" in templates(lowered(graph))
    check(graph)


def test_a_slice_that_is_part_of_a_concatenation_is_copied():
    b = builder()
    x = b.graph.inputs[0]
    part = channels(b, b.conv(x, 64), 16, 48)
    graph = done(b, b.conv(concat(b, b.conv(x, 16), part), 16))
    assert templates(lowered(graph)).count("copy") == 1
    check(graph)


def test_rows_that_lie_side_by_side_are_read_in_place():
    b = GraphBuilder({"x": TensorType((1, 6, 32))})
    hidden = b.op(ops.ExpOp, b.graph.inputs[0])
    row = b.op(ops.ReshapeOp, b.op(ops.SliceOp, hidden, axis=1, start=3, stop=4), shape=(1, 32))
    graph = done(b, b.linear(row, 8), b.op(ops.TanhOp, hidden))
    assert "copy" not in templates(lowered(graph))
    check(graph)


def test_channel_shuffle_of_odd_parts():
    b = builder(channels=58)
    x = b.graph.inputs[0]
    joined = concat(b, b.conv(x, 58, kernel=1), b.conv(x, 58, kernel=1))
    split = b.op(ops.ReshapeOp, joined, shape=(1, 2, 58, 5, 5))
    shuffled = b.op(ops.ReshapeOp, b.op(ops.PermuteOp, split, dims=(0, 2, 1, 3, 4)), shape=(1, 116, 5, 5))
    first, second = channels(b, shuffled, 0, 58), channels(b, shuffled, 58, 116)
    graph = done(b, b.op(ops.ConcatOp, first, b.conv(second, 58, kernel=1), axis=1))
    found = templates(lowered(graph, "channel-shuffle,layout"))
    assert found.count("channel_gather") == 3  # both halves, and the concatenation of odd parts
    check(graph, pipeline="channel-shuffle,layout")


# Memory -------------------------------------------------------------------------------------------------------------


def test_the_buffer_lives_as_long_as_its_last_part():
    b = builder(channels=16, size=8)
    joined = concat(b, b.conv(b.graph.inputs[0], 16), b.conv(b.graph.inputs[0], 16))
    late = channels(b, joined, 16, 32)
    x = b.conv(joined, 16)
    for _ in range(4):
        x = b.conv(x, 16, kernel=1)
    check(done(b, b.op(ops.AddOp, x, late)))


def test_calls_do_not_disturb_each_other():
    b = builder()
    x = b.graph.inputs[0]
    graph = done(b, b.conv(concat(b, b.conv(x, 16), b.conv(x, 16)), 16))
    executable = compiled(graph)
    first, second = (torch.randn(1, 16, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    kept = executable(first)
    wanted = kept.clone()
    executable(second)
    assert torch.equal(kept, wanted)
    assert torch.equal(executable(first), wanted)
