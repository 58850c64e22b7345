"""Sibling layers on one value become one wider layer."""

from __future__ import annotations

import pytest

from tersor.ir import TensorType, Value
from tersor.ir.ops import AddOp, AttentionOp, ConcatOp, Conv2dOp, MaxPool2dOp, PermuteOp, ReluOp, ReshapeOp, SigmoidOp
from tersor.tests.checks import body, kinds, refusals, run_checked
from tersor.tests.random_graphs import GraphBuilder

RULE = "fuse-parallel"


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (1, 16, 6, 6))})


def pooled(b: GraphBuilder, x: Value) -> Value:
    """Something that reads ``x`` and is no layer."""
    return b.op(MaxPool2dOp, x, kernel=(2, 2), stride=(2, 2))


def heads(b: GraphBuilder, x: Value) -> Value:
    batch, sequence, width = x.shape
    split = b.op(ReshapeOp, x, shape=(batch, sequence, 2, width // 2))
    return b.op(PermuteOp, split, dims=(0, 2, 1, 3))


def test_two_convolutions():
    b = builder()
    x = b.graph.inputs[0]
    graph = b.done(*(pooled(b, b.conv(x, width, kernel=1, location=name)) for name, width in (("a", 16), ("b", 32))))
    optimized = run_checked(graph, RULE, fires=RULE).graph
    expected = """
        graph @test(%x: f32[1,16,6,6]) {
        %0 = weight {id="a.weight.joined", type=f32[48,16,1,1]} : f32[48,16,1,1] loc("a") rule("fuse-parallel")
        %1 = weight {id="a.weight.joined_bias", type=f32[48]} : f32[48] loc("a") rule("fuse-parallel")
        %2 = conv2d(%x, %0, %1) : f32[1,48,6,6] loc("a") rule("fuse-parallel")
        %3 = slice(%2) {axis=1, start=0, stop=16} : f32[1,16,6,6] loc("a") rule("fuse-parallel")
        %4 = slice(%2) {axis=1, start=16, stop=48} : f32[1,32,6,6] loc("b") rule("fuse-parallel")
        %5 = max_pool2d(%3) {kernel=[2,2], stride=[2,2]} : f32[1,16,3,3]
        %6 = max_pool2d(%4) {kernel=[2,2], stride=[2,2]} : f32[1,32,3,3]
        return %5, %6
        }"""
    assert body(str(optimized)) == body(expected)


def test_unary_ops_that_all_share_move_before_the_slices():
    b = builder()
    x = b.graph.inputs[0]
    graph = b.done(*(pooled(b, b.op(ReluOp, b.conv(x, 16))) for _ in range(3)))
    assert kinds(run_checked(graph, RULE, fires=RULE).graph) == ["conv2d", "relu", *["slice"] * 3, *["max_pool2d"] * 3]


def test_a_missing_bias_counts_as_zero():
    b = builder()
    x = b.graph.inputs[0]
    graph = b.done(pooled(b, b.conv(x, 16, bias=False)), pooled(b, b.conv(x, 16)))
    assert kinds(run_checked(graph, RULE, fires=RULE).graph).count("conv2d") == 1


def test_no_bias_stays_none():
    b = builder()
    x = b.graph.inputs[0]
    graph = run_checked(b.done(*(pooled(b, b.conv(x, 16, bias=False)) for _ in range(2))), RULE, fires=RULE).graph
    assert next(op for op in graph.ops if isinstance(op, Conv2dOp)).bias is None


def test_projections_of_attention():
    b = builder(1, 10, 12)
    x = b.graph.inputs[0]
    graph = b.done(b.op(AttentionOp, *(heads(b, b.linear(x, 12)) for _ in range(3))))
    found = kinds(run_checked(graph, RULE, fires=RULE).graph)
    assert found == ["linear", *["slice"] * 3, *["reshape", "permute"] * 3, "attention"]


def test_two_groups_of_siblings_that_agree():
    b = builder()
    x = b.graph.inputs[0]
    graph = b.done(*(pooled(b, b.conv(x, 16, kernel=kernel)) for kernel in (1, 3, 1, 3)))
    assert kinds(run_checked(graph, RULE).graph).count("conv2d") == 2


@pytest.mark.parametrize(
    ("options", "others"),
    [({"kernel": 1}, {"kernel": 3}), ({"stride": 1}, {"stride": 2}), ({"groups": 1}, {"groups": 16})],
    ids=["window", "stride", "groups"],
)
def test_layers_that_differ_are_no_siblings(options, others):
    b = builder()
    x = b.graph.inputs[0]
    graph = b.done(pooled(b, b.conv(x, 16, **options)), pooled(b, b.conv(x, 16, **others)))
    assert kinds(run_checked(graph, RULE).graph).count("conv2d") == 2


def only_refusal(b: GraphBuilder, *outputs: Value) -> str:
    """The reason for which a pair of layers is left alone, for both or for the one that is refused."""
    outcome = run_checked(b.done(*outputs), RULE)
    assert "slice" not in kinds(outcome.graph)
    (reason,) = {line.partition(": ")[2] for line in refusals(outcome)}
    return reason


def test_parts_of_channel_blocks_are_refused():
    b = builder()
    x = b.graph.inputs[0]
    reason = only_refusal(b, pooled(b, b.conv(x, 24)), pooled(b, b.conv(x, 16)))
    assert reason == "slices of f32[1,24,6,6] would be copied"


def test_several_images_are_refused():
    b = builder(2, 16, 6, 6)
    x = b.graph.inputs[0]
    reason = only_refusal(b, *(pooled(b, b.conv(x, 16)) for _ in range(2)))
    assert reason == "slices of f32[2,16,6,6] would be copied"


def test_groups_are_refused():
    b = builder()
    x = b.graph.inputs[0]
    assert only_refusal(b, *(pooled(b, b.conv(x, 16, groups=2)) for _ in range(2))) == "it has 2 groups"


def test_parts_of_a_concatenation_are_refused():
    b = builder()
    x = b.graph.inputs[0]
    parts = [b.op(ReluOp, b.conv(x, 16)) for _ in range(2)]
    assert only_refusal(b, b.op(ConcatOp, *parts, axis=1)) == "it writes straight into a concatenation"


def test_a_residual_sum_is_refused():
    b = builder()
    x = b.graph.inputs[0]
    reason = only_refusal(b, b.op(AddOp, b.conv(x, 16), b.conv(x, 16)))
    assert reason == "an elementwise op fuses into this layer alone"


def test_different_activations_are_refused():
    b = builder()
    x = b.graph.inputs[0]
    outputs = [pooled(b, b.op(kind, b.conv(x, 16))) for kind in (ReluOp, SigmoidOp)]
    assert only_refusal(b, *outputs) == "different elementwise ops follow its siblings"


def test_linear_layers_whose_readers_need_rows_are_refused():
    b = builder(4, 12)
    x = b.graph.inputs[0]
    reason = only_refusal(b, *(b.linear(b.linear(x, 8), 3) for _ in range(2)))
    assert reason == "a reader of its result needs contiguous rows"


def test_weights_computed_at_run_time_are_refused():
    b = GraphBuilder({"x": TensorType((1, 16, 6, 6)), "w": TensorType((16, 16, 1, 1))})
    x, w = b.graph.inputs
    reason = only_refusal(b, *(pooled(b, b.op(Conv2dOp, x, w, None)) for _ in range(2)))
    assert reason == "its weights are not constant, or not loaded"
