"""``to-bf16``: what it converts, what it leaves alone, and how near the numbers stay."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, structurally_equal
from tersor.ir.ops import AddOp, AttentionOp, CastOp, Conv2dOp, LayerNormOp, MaxPool2dOp, MulOp, ReluOp, WeightOp
from tersor.passes import run_passes
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder

TOLERANCE = 0.02  # of an output's scale


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (1, 16, 6, 6))})


def dtypes(graph: Graph, kind: type) -> list[DType]:
    return [op.result.type.dtype for op in graph.ops if isinstance(op, kind)]


def test_convolutions_and_what_stands_between_them():
    b = builder()
    first = b.op(ReluOp, b.conv(b.graph.inputs[0], 32))
    pooled = b.op(MaxPool2dOp, first, kernel=(2, 2), stride=(2, 2))
    second = b.op(AddOp, b.conv(pooled, 32), pooled)
    outcome = run_checked(b.done(second), "to-bf16", tolerance=TOLERANCE)
    assert kinds(outcome.graph) == ["cast", "conv2d", "relu", "max_pool2d", "conv2d", "add", "cast"]
    assert dtypes(outcome.graph, Conv2dOp) == [DType.BF16] * 2
    assert outcome.graph.outputs[0].type.dtype is DType.F32


def test_biases_stay_float32_and_weights_are_fresh():
    b = builder()
    graph = b.done(b.conv(b.graph.inputs[0], 8))
    original = graph.weights["conv.weight"].clone()
    (conv,) = [op for op in run_passes(graph, "to-bf16").ops if isinstance(op, Conv2dOp)]
    assert conv.weight.type.dtype is DType.BF16
    assert conv.bias.type.dtype is DType.F32
    assert conv.weight.op.attrs.id == "conv.weight..bf16"
    assert torch.equal(graph.weights["conv.weight"], original)


def test_attention_keeps_its_mask_and_layer_norm_its_parameters():
    b = GraphBuilder({"x": TensorType((1, 2, 8, 16)), "mask": TensorType((8, 8))})
    x, mask = b.graph.inputs
    attended = b.op(AddOp, b.op(AttentionOp, x, x, x, mask), x)
    graph = b.done(b.op(LayerNormOp, attended, b.weight(16), b.weight(16), dims=1))
    outcome = run_checked(graph, "to-bf16", tolerance=TOLERANCE)
    assert kinds(outcome.graph) == ["cast", "attention", "add", "layer_norm", "cast"]
    assert dtypes(outcome.graph, WeightOp) == [DType.F32] * 2


def test_fused_groups_are_converted_too():
    b = builder()
    graph = b.done(b.op(ReluOp, b.conv(b.op(ReluOp, b.conv(b.graph.inputs[0], 16)), 16)))
    after, between = run_passes(graph, "O3,to-bf16"), run_passes(graph, "O2,to-bf16,fuse")
    assert structurally_equal(after, between)
    assert kinds(after) == ["cast", "fused", "fused"]
    assert run_passes(after, "to-bf16").cost() == after.cost()
    assert structurally_equal(run_passes(after, "to-bf16"), after)


def test_nothing_to_gain_changes_nothing():
    b = builder()
    outcome = run_checked(b.done(b.op(MulOp, b.graph.inputs[0], b.number(2.0))), "to-bf16")
    assert rules(outcome) == []


def test_a_constant_beyond_the_range_is_refused():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 16)
    outcome = run_checked(b.done(b.op(AddOp, conv, b.number(3.4e38))), "to-bf16", tolerance=TOLERANCE)
    assert refusals(outcome) == ["to-bf16 refused add: the constant 3.4e+38 is beyond the range of bf16"]


def test_after_layout_is_refused():
    b = builder(1, 16, 6, 6)
    graph = run_passes(b.done(b.conv(b.graph.inputs[0], 16)), "layout{block=16}")
    (refusal,) = refusals(run_checked(graph, "to-bf16"))
    assert refusal.endswith("layouts are chosen already; run to-bf16 before layout")


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_error_is_reported(calibrated: bool):
    from tersor.passes import PassManager, as_pipeline

    b = builder()
    graph = b.done(b.conv(b.graph.inputs[0], 16))
    batches = [(torch.zeros(1, 16, 6, 6),)] if calibrated else None
    record = PassManager(as_pipeline("to-bf16")).run(graph, calibration=batches).report.records[0]
    (note,) = record.notes
    assert note.startswith("1 ops in bf16; output 0 differs by ")


def test_running_the_graph_rounds_where_the_type_says():
    b = builder(1, 16, 1, 1)
    graph = run_passes(b.done(b.conv(b.graph.inputs[0], 16, kernel=1)), "to-bf16")
    (output,) = graph.evaluate(torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(output, output.bfloat16().float())
    assert any(isinstance(op, CastOp) for op in graph.ops)
