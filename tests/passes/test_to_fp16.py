"""``to-fp16``: what differs from ``to-bf16``, with which it shares all else."""

from __future__ import annotations

import torch

from tersor.ir import DType, TensorType, structurally_equal
from tersor.ir.ops import AttentionOp, CastOp, Conv2dOp, LayerNormOp, LinearOp, MulOp, ReluOp
from tersor.passes import run_passes
from tersor.tests.checks import kinds, refusals, run_checked
from tersor.tests.random_graphs import GraphBuilder

TOLERANCE = 4e-3  # of an output's scale: an eighth of what bf16 needs


def test_convolutions_and_what_follows_them():
    b = GraphBuilder({"x": TensorType((1, 16, 6, 6))})
    outcome = run_checked(b.done(b.op(ReluOp, b.conv(b.graph.inputs[0], 32))), "to-fp16", tolerance=TOLERANCE)
    assert kinds(outcome.graph) == ["cast", "conv2d", "relu", "cast"]
    (conv,) = [op for op in outcome.graph.ops if isinstance(op, Conv2dOp)]
    assert conv.weight.type.dtype is conv.result.type.dtype is DType.F16
    assert conv.bias.type.dtype is DType.F32
    assert outcome.graph.outputs[0].type.dtype is DType.F32


def test_attention_and_normalisation():
    b = GraphBuilder({"x": TensorType((1, 2, 8, 16))})
    (x,) = b.graph.inputs
    attended = b.op(LayerNormOp, b.op(AttentionOp, x, x, x), b.weight(16), b.weight(16), dims=1)
    outcome = run_checked(b.done(b.op(LinearOp, attended, b.weight(4, 16))), "to-fp16", tolerance=TOLERANCE)
    assert kinds(outcome.graph) == ["cast", "attention", "layer_norm", "linear", "cast"]


def test_numbers_beyond_the_range_are_refused():
    b = GraphBuilder({"x": TensorType((2, 8))})
    product = b.op(LinearOp, b.graph.inputs[0], b.weight(4, 8))
    large = b.op(MulOp, product, b.number(1e5))
    outcome = run_checked(
        b.done(b.op(LinearOp, large, b.constant(torch.full((3, 4), 7e4)))), "to-fp16", tolerance=TOLERANCE
    )
    assert refusals(outcome) == [
        "to-fp16 refused mul: the constant 100000.0 is beyond the range of f16",
        "to-fp16 refused linear: a weight is beyond the range of f16",
    ]


def test_a_second_run_changes_nothing():
    b = GraphBuilder({"x": TensorType((1, 16, 6, 6))})
    once = run_passes(b.done(b.conv(b.graph.inputs[0], 16)), "O3,to-fp16")
    assert sum(isinstance(op, CastOp) for op in once.ops) == 2
    assert structurally_equal(run_passes(once, "to-fp16"), once)
