"""The pass ``layout``: which values are stored in channel blocks, and where their storage changes."""

from __future__ import annotations

import pytest

from tersor.ir import DType, Graph, Op, TensorType, Value, ops, verify
from tersor.ir.ops import RelayoutOp
from tersor.passes import PassManager, PipelineError, parse_pipeline, run_passes
from tersor.targets import resolve_target
from tersor.tests.checks import body, kinds, run_checked
from tersor.tests.random_graphs import GraphBuilder, random_graph

LAYOUT = "layout{block=16}"


def builder(**shapes: tuple[int, ...]) -> GraphBuilder:
    return GraphBuilder({name: TensorType(shape) for name, shape in shapes.items()})


def laid_out(graph: Graph, pipeline: str = LAYOUT) -> Graph:
    """The graph after the pass, with all checks on; the pass is exact, so numbers must be equal to the last bit."""
    return run_checked(graph, pipeline, tolerance=0.0 if pipeline == LAYOUT else 1e-5).graph


def relayouts(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if isinstance(op, RelayoutOp)]


def blocks(*values: Value) -> list[int]:
    return [value.type.channel_block for value in values]


def test_golden_convolutions_and_pooling():
    b = builder(x=(1, 3, 8, 8))
    first = b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 32, location="stem"), location="relu")
    pooled = b.op(ops.MaxPool2dOp, first, location="pool", kernel=(2, 2), stride=(2, 2))
    second = b.conv(pooled, 24, bias=False, location="body")
    flat = b.op(ops.ReshapeOp, second, location="flatten", shape=(1, 384))
    assert body(str(laid_out(b.done(flat)))) == body(
        """
        graph @test(%x: f32[1,3,8,8]) {
          %0 = weight {id="stem.weight", type=f32[32,3,3,3]} : f32[32,3,3,3]
          %1 = weight {id="stem.bias", type=f32[32]} : f32[32]
          %2 = conv2d(%x, %0, %1) {padding=[1,1,1,1]} : f32[1,32,8,8]@c16 loc("stem")
          %3 = relu(%2) : f32[1,32,8,8]@c16 loc("relu")
          %4 = max_pool2d(%3) {kernel=[2,2], stride=[2,2]} : f32[1,32,4,4]@c16 loc("pool")
          %5 = weight {id="body.weight", type=f32[24,32,3,3]} : f32[24,32,3,3]
          %6 = conv2d(%4, %5, _) {padding=[1,1,1,1]} : f32[1,24,4,4]@c16 loc("body")
          %7 = relayout(%6) {channel_block=0} : f32[1,24,4,4] loc("flatten") rule("layout")
          %8 = reshape(%7) {shape=[1,384]} : f32[1,384] loc("flatten")
          return %8
        }
        """
    )


def test_golden_plain_operands_are_relaid_where_blocks_are_wanted():
    b = builder(x=(1, 16, 4, 4), scale=(1, 16, 1, 1), shift=(16, 1, 1))
    x, scale, shift = b.graph.inputs
    scaled = b.op(ops.MulOp, b.conv(x, 16, 1, bias=False), scale)
    graph = b.done(b.op(ops.AddOp, scaled, shift))
    assert body(str(laid_out(graph))) == body(
        """
        graph @test(%x: f32[1,16,4,4], %scale: f32[1,16,1,1], %shift: f32[16,1,1]) {
          %0 = weight {id="conv.weight", type=f32[16,16,1,1]} : f32[16,16,1,1]
          %1 = relayout(%x) {channel_block=16} : f32[1,16,4,4]@c16 loc("conv") rule("layout")
          %2 = conv2d(%1, %0, _) : f32[1,16,4,4]@c16 loc("conv")
          %3 = relayout(%scale) {channel_block=16} : f32[1,16,1,1]@c16 rule("layout")
          %4 = mul(%2, %3) : f32[1,16,4,4]@c16
          %5 = add(%4, %shift) : f32[1,16,4,4]@c16
          %6 = relayout(%5) {channel_block=0} : f32[1,16,4,4] rule("layout")
          return %6
        }
        """
    )


def test_each_value_is_relaid_once_in_each_direction():
    b = builder(x=(1, 16, 4, 4))
    x = b.graph.inputs[0]
    first, second = b.conv(x, 16), b.conv(x, 16)
    joined = b.op(ops.AddOp, first, second)
    rows = [b.op(ops.SoftmaxOp, joined, axis=3) for _ in range(3)]
    again = b.conv(joined, 16)
    graph = laid_out(b.done(*rows, again, joined))
    assert len(relayouts(graph)) == 3  # the input, the sum for its plain readers and the output, the last convolution
    assert blocks(*graph.outputs) == [0] * 5


def test_a_value_that_was_plain_before_is_read_there_again():
    b = builder(x=(1, 16, 4, 4))
    x = b.op(ops.ExpOp, b.graph.inputs[0])
    graph = laid_out(b.done(b.conv(b.op(ops.SoftmaxOp, b.op(ops.AddOp, b.conv(x, 16), x), axis=3), 8), x))
    assert graph.outputs[1].op.name == "exp"
    assert [(op.x.op.name, op.attrs.channel_block) for op in relayouts(graph)] == [
        ("exp", 16),
        ("add", 0),
        ("softmax", 16),
        ("conv2d", 0),
    ]


@pytest.mark.parametrize(("channels", "relaid"), [(1, False), (3, False), (15, False), (16, True), (17, True)])
def test_narrow_first_layers_read_plain_pictures(channels: int, relaid: bool):
    b = builder(x=(1, channels, 6, 6))
    graph = laid_out(b.done(b.conv(b.graph.inputs[0], 16)))
    assert kinds(graph) == ["relayout"] * relaid + ["conv2d", "relayout"]


def test_groups_of_ops_count_as_their_anchor():
    b = builder(x=(1, 3, 6, 6), y=(1, 32, 6, 6))
    x, y = b.graph.inputs
    block = b.op(ops.ReluOp, b.op(ops.AddOp, b.conv(x, 32), y))
    graph = laid_out(b.done(b.linear(b.op(ops.ReluOp, b.op(ops.NegOp, block)), 5)), f"fuse,{LAYOUT}")
    names = kinds(graph)
    assert names == ["relayout", "fused", "relayout", "linear"] or names == [
        "relayout",
        "fused",
        "fused",
        "relayout",
        "linear",
    ]
    assert blocks(*[op.result for op in graph.ops if op.name == "fused"]) == [16] * names.count("fused")


def test_graphs_without_convolutions_stay_as_they_are():
    b = builder(x=(2, 5, 24), y=(1, 4, 6, 6))
    x, y = b.graph.inputs
    outputs = (b.op(ops.SoftmaxOp, b.linear(x, 8), axis=2), b.op(ops.ReluOp, y), b.op(ops.MeanOp, y, axes=(2, 3)))
    outcome = run_checked(b.done(*outputs), LAYOUT, tolerance=0.0)
    assert not any(record.changed for record in outcome.report.records)


def test_joins_and_slices_of_channels_stay_blocked():
    b = builder(x=(1, 3, 4, 4))
    x = b.graph.inputs[0]
    joined = b.op(ops.ConcatOp, b.conv(x, 20), b.conv(x, 24), axis=1)
    channels = b.op(ops.SliceOp, joined, axis=1, start=3, stop=30)
    rows = b.op(ops.SliceOp, joined, axis=2, start=1, stop=3)
    graph = laid_out(b.done(b.conv(channels, 16), rows))
    (join,) = (op for op in graph.ops if op.name == "concat")
    assert blocks(join.result, *join.operands) == [16, 16, 16]
    first, second = (op for op in graph.ops if op.name == "slice")
    assert blocks(first.result, first.x) == [16, 16]
    assert blocks(second.result, second.x) == [0, 0]


def test_outputs_are_plain_inputs_untouched_and_shared_outputs_relaid_once():
    b = builder(x=(1, 3, 4, 4))
    made = b.conv(b.graph.inputs[0], 16)
    graph = laid_out(b.done(made, made, b.graph.inputs[0]))
    assert blocks(*graph.inputs, *graph.outputs) == [0] * 4
    assert graph.outputs[0] is graph.outputs[1]
    assert len(relayouts(graph)) == 1


def test_masks_follow():
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4)), "mask": TensorType((1, 1, 4, 4), DType.BOOL)})
    x, mask = b.graph.inputs
    hidden = b.op(ops.WhereOp, mask, b.conv(x, 16), b.number(0.0))
    graph = laid_out(b.done(b.conv(hidden, 16)))
    where = next(op for op in graph.ops if op.name == "where")
    assert blocks(*where.operands, where.result) == [16, 16, 0, 16]


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_keep_their_bits(seed: int):
    graph = random_graph(seed, 12)
    verify(laid_out(graph))


@pytest.mark.parametrize(("target", "block"), [("x86:avx2", 8), ("x86:skylake-avx512", 16)])
def test_blocks_are_as_wide_as_the_vectors_of_the_target(target: str, block: int):
    b = builder(x=(1, 3, 4, 4))
    graph = run_passes(b.done(b.conv(b.graph.inputs[0], 16)), "layout", target=resolve_target(target))
    relayout = graph.outputs[0].op
    assert relayout is not None and blocks(relayout.inputs[0]) == [block]


def test_without_a_target_or_a_block_nothing_changes():
    b = builder(x=(1, 3, 4, 4))
    outcome = PassManager(parse_pipeline("layout")).run(b.done(b.conv(b.graph.inputs[0], 16)))
    (record,) = outcome.report.records
    assert not record.changed
    assert kinds(outcome.graph) == ["conv2d"]
    assert [(refusal.rule, "target" in refusal.reason) for refusal in record.refused] == [("layout", True)]


@pytest.mark.parametrize("block", [1, 12, -16])
def test_blocks_that_no_vector_has_are_refused(block: int):
    with pytest.raises(PipelineError, match="block must be a power of two"):
        parse_pipeline(f"layout{{block={block}}}")
