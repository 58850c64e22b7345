from __future__ import annotations

import pytest

from tersor.ir import DType, Graph, TensorType, structurally_equal
from tersor.ir.ops import (
    AddOp,
    AttentionOp,
    CastOp,
    ConcatOp,
    FusedOp,
    GtOp,
    LayerNormOp,
    MatmulOp,
    MaxPool2dOp,
    MeanOp,
    MulOp,
    RelayoutOp,
    ReluOp,
    SigmoidOp,
    SoftmaxOp,
    TanhOp,
    WhereOp,
)
from tersor.tests.checks import body, kinds, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder, random_graph


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (1, 4, 6, 6))})


def groups(graph: Graph) -> list[list[str]]:
    """Names of the ops in each group, constants left out."""
    return [[inner.name for inner in op.body.ops if inner.inputs] for op in graph.ops if op.body is not None]


def test_conv_with_epilogue():
    b = builder()
    x = b.graph.inputs[0]
    scaled = b.op(MulOp, b.conv(x, 4, bias=False), b.number(0.5), location="scale")
    graph = run_checked(b.done(b.op(ReluOp, scaled, location="act")), "fuse").graph
    expected = """
        graph @test(%x: f32[1,4,6,6]) {
        %0 = weight {id="conv.weight", type=f32[4,4,3,3]} : f32[4,4,3,3]
        %1 = fused(%x, %0) : f32[1,4,6,6] loc("conv") rule("fuse-epilogue") BODY
        %0 = full {value=0.5} : f32[]
        %1 = conv2d(%x, %arg1, _) {padding=[1,1,1,1]} : f32[1,4,6,6] loc("conv")
        %2 = mul(%1, %0) : f32[1,4,6,6] loc("scale")
        %3 = relu(%2) : f32[1,4,6,6] loc("act")
        return %3
        }
        return %1
        }"""
    head = "body @conv2d_mul_relu(%x: f32[1,4,6,6], %arg1: f32[4,4,3,3]) {"
    assert body(str(graph)) == body(expected).replace("BODY", head)


def test_residual_goes_to_the_later_conv():
    b = builder()
    x = b.graph.inputs[0]
    first = b.op(ReluOp, b.conv(x, 4, location="a"))
    second = b.conv(first, 4, location="b")
    shortcut = b.conv(x, 4, 1, location="shortcut")
    out = b.op(ReluOp, b.op(AddOp, second, shortcut))
    graph = run_checked(b.done(out), "fuse").graph
    assert groups(graph) == [["conv2d", "relu"], ["conv2d", "add", "relu"]]
    assert graph.outputs[0].op.location == "shortcut"
    assert kinds(graph) == ["fused", "conv2d", "fused"]


def test_diamond_inside_of_a_group():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    graph = run_checked(b.done(b.op(MulOp, b.op(SigmoidOp, conv), b.op(TanhOp, conv))), "fuse").graph
    assert [sorted(group) for group in groups(graph)] == [["conv2d", "mul", "sigmoid", "tanh"]]


def test_value_read_outside_ends_the_group():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    inner = b.op(ReluOp, conv)
    graph = run_checked(b.done(b.op(SigmoidOp, inner), inner), "fuse").graph
    assert groups(graph) == [["conv2d", "relu"]]
    assert kinds(graph) == ["fused", "sigmoid"]


def test_path_through_another_anchor_is_not_taken():
    """x -> conv a -> conv b -> add(a, b): the way from a to the addition leads through b."""
    b = builder()
    first = b.conv(b.graph.inputs[0], 4, location="a")
    graph = run_checked(b.done(b.op(AddOp, first, b.conv(first, 4, location="b"))), "fuse").graph
    assert groups(graph) == [["conv2d", "add"]]
    assert graph.outputs[0].op.location == "b"


def test_dead_reader_ends_the_group():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    inner = b.op(ReluOp, conv)
    b.op(TanhOp, inner)
    graph = run_checked(b.done(b.op(SigmoidOp, inner)), "fuse").graph
    assert groups(graph) == [["conv2d", "relu"]]


def test_broadcast_result_ends_the_group():
    """Squeeze and excitation: the gate has one number per channel, the product a whole plane."""
    b = builder()
    x = b.graph.inputs[0]
    pooled = b.op(MeanOp, x, axes=(2, 3), keepdim=True)
    gate = b.op(SigmoidOp, b.conv(pooled, 4, 1))
    graph = run_checked(b.done(b.op(MulOp, x, gate)), "fuse").graph
    assert groups(graph) == [["conv2d", "sigmoid"]]
    assert kinds(graph) == ["mean", "fused", "mul"]


def test_elementwise_op_before_an_anchor_is_no_part_of_its_group():
    b = builder()
    graph = run_checked(b.done(b.op(TanhOp, b.conv(b.op(ReluOp, b.graph.inputs[0]), 4))), "fuse").graph
    assert kinds(graph) == ["relu", "fused"]


def test_other_operand_is_computed_in_the_group():
    """A cheap elementwise operand of the epilogue that nothing else reads joins, even if it comes before the anchor."""
    b = builder()
    x = b.graph.inputs[0]
    other = b.op(SigmoidOp, x)
    graph = run_checked(b.done(b.op(AddOp, b.conv(x, 4), other)), "fuse").graph
    assert groups(graph) == [["sigmoid", "conv2d", "add"]]


def test_gate_of_an_earlier_conv_stays_with_it():
    b = builder()
    x = b.graph.inputs[0]
    gate = b.op(SigmoidOp, b.conv(x, 4, location="gate"))
    graph = run_checked(b.done(b.op(MulOp, b.conv(x, 4, location="main"), gate)), "fuse").graph
    assert groups(graph) == [["conv2d", "sigmoid"], ["conv2d", "mul"]]


def test_elementwise_groups_are_maximal():
    b = GraphBuilder({"x": TensorType((2, 8)), "y": TensorType((2, 8))})
    x, y = b.graph.inputs
    left, right = b.op(SigmoidOp, b.op(AddOp, x, y)), b.op(TanhOp, y)
    graph = run_checked(b.done(b.op(MulOp, left, right)), "fuse").graph
    assert groups(graph) == [["add", "sigmoid", "tanh", "mul"]]


def test_comparison_cast_and_where():
    b = builder(2, 8)
    x = b.graph.inputs[0]
    mask = b.op(GtOp, x, b.number(0.0))
    graph = run_checked(b.done(b.op(WhereOp, mask, b.op(CastOp, mask, dtype=DType.F32), x)), "fuse").graph
    assert groups(graph) == [["gt", "cast", "where"]]


def test_weights_and_larger_fulls_are_operands():
    b = builder(2, 8)
    x = b.graph.inputs[0]
    graph = run_checked(b.done(b.op(MulOp, b.op(AddOp, x, b.weight(8)), b.number(2.0, 8))), "fuse").graph
    (fused,) = (op for op in graph.ops if isinstance(op, FusedOp))
    assert [value.op.name if value.op else "input" for value in fused.inputs] == ["input", "weight", "full"]


def test_number_that_is_read_elsewhere_stays_outside_too():
    b = builder(2, 8)
    x, number = b.graph.inputs[0], b.number(2.0)
    graph = run_checked(b.done(b.op(ReluOp, b.op(MulOp, x, number)), number), "fuse").graph
    assert [op.name for op in graph.ops] == ["full", "fused"]


@pytest.mark.parametrize("kind", ["linear", "matmul", "attention", "max_pool2d", "reduce", "softmax", "layer_norm"])
def test_other_anchors(kind):
    b = builder(1, 2, 6, 6)
    x = b.graph.inputs[0]
    anchor = {
        "linear": lambda: b.linear(x, 5),
        "matmul": lambda: b.op(MatmulOp, x, x),
        "attention": lambda: b.op(AttentionOp, x, x, x),
        "max_pool2d": lambda: b.op(MaxPool2dOp, x, kernel=(2, 2), stride=(2, 2)),
        "reduce": lambda: b.op(MeanOp, x, axes=(2, 3)),
        "softmax": lambda: b.op(SoftmaxOp, x, axis=3),
        "layer_norm": lambda: b.op(LayerNormOp, x),
    }[kind]()
    assert len(groups(run_checked(b.done(b.op(TanhOp, anchor)), "fuse").graph)) == 1


def test_relayout_and_concat_are_left_alone():
    b = builder(1, 16, 4, 4)
    x = b.graph.inputs[0]
    blocked = b.op(RelayoutOp, b.conv(x, 16), channel_block=16)
    plain = b.op(RelayoutOp, blocked, channel_block=0)
    outcome = run_checked(b.done(b.op(ConcatOp, plain, plain, axis=1)), "fuse")
    assert rules(outcome) == []


def test_layout_of_the_last_op_is_kept():
    b = builder(1, 16, 4, 4)
    out = b.op(ReluOp, b.conv(b.graph.inputs[0], 16))
    out.type = out.type.with_layout(16)
    plain = b.op(RelayoutOp, out, channel_block=0)
    graph = run_checked(b.done(plain), "fuse").graph
    assert [str(op.result.type) for op in graph.ops if isinstance(op, FusedOp)] == ["f32[1,16,4,4]@c16"]


def test_single_ops_are_not_wrapped():
    b = builder()
    assert rules(run_checked(b.done(b.conv(b.op(ReluOp, b.graph.inputs[0]), 8)), "fuse")) == []


def test_epilogues_alone_leave_other_elementwise_ops_single():
    b = builder(1, 4, 6, 6)
    x = b.graph.inputs[0]
    outputs = (b.op(ReluOp, b.conv(x, 4)), b.op(MulOp, x, b.op(SigmoidOp, x)))
    graph = run_checked(b.done(*outputs), "fuse-epilogue").graph
    assert kinds(graph) == ["fused", "sigmoid", "mul"]


def test_elementwise_groups_alone_leave_layers_single():
    b = builder(1, 4, 6, 6)
    x = b.graph.inputs[0]
    outputs = (b.op(ReluOp, b.conv(x, 4)), b.op(MulOp, x, b.op(SigmoidOp, x)))
    graph = run_checked(b.done(*outputs), "fuse-elementwise").graph
    assert kinds(graph) == ["conv2d", "relu", "fused"]


@pytest.mark.parametrize("seed", range(10))
def test_fuse_is_both_in_turn(seed: int):
    graph = random_graph(seed, 14)
    fused = run_checked(graph, "fuse").graph
    assert structurally_equal(fused, run_checked(graph, "fuse-epilogue,fuse-elementwise").graph)
