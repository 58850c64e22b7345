from __future__ import annotations

import torch

from tersor.ir import TensorType
from tersor.ir.ops import AddOp, FullOp, MulOp, PowOp, ReluOp, SigmoidOp, SubOp
from tersor.tests.checks import kinds, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder() -> GraphBuilder:
    return GraphBuilder({"x": TensorType((2, 3)), "y": TensorType((2, 3))})


def test_dce_removes_chains_and_weights_but_not_inputs():
    b = builder()
    x, _ = b.graph.inputs
    b.op(AddOp, b.op(SigmoidOp, x), b.weight(3, hint="dead"))
    outcome = run_checked(b.done(b.op(MulOp, x, b.weight(3, hint="live"))), "dce")
    assert [op.name for op in outcome.graph.ops] == ["weight", "mul"]
    assert list(outcome.graph.weights) == ["live"]
    assert len(outcome.graph.inputs) == 2


def test_dce_keeps_what_an_output_reads():
    b = builder()
    hidden = b.op(ReluOp, b.graph.inputs[0])
    assert rules(run_checked(b.done(hidden, b.op(SigmoidOp, hidden)), "dce")) == []


def test_cse_merges_chains_and_commuted_operands():
    b = builder()
    x, y = b.graph.inputs
    left, right = b.op(ReluOp, b.op(AddOp, x, y)), b.op(ReluOp, b.op(AddOp, y, x))
    outcome = run_checked(b.done(b.op(MulOp, left, right)), "cse")
    assert kinds(outcome.graph) == ["add", "relu", "mul"]
    assert rules(outcome) == ["common-subexpression"] * 2


def test_cse_merges_weights_by_content():
    b = builder()
    x, _ = b.graph.inputs
    numbers = torch.arange(3.0)
    one, two = b.constant(numbers, "a"), b.constant(numbers.clone(), "b")
    outcome = run_checked(b.done(b.op(AddOp, b.op(AddOp, x, one), two)), "cse")
    assert list(outcome.graph.weights) == ["a"]


def test_cse_keeps_what_differs():
    b = builder()
    x, y = b.graph.inputs
    values = [
        b.op(SubOp, x, y),
        b.op(SubOp, y, x),
        b.op(PowOp, x, b.number(2.0)),
        b.op(PowOp, x, b.number(3.0)),
        b.op(MulOp, x, b.weight(3)),
        b.op(MulOp, x, b.weight(3)),
        b.op(FullOp, value=0.0, shape=(2,)),
        b.op(FullOp, value=-0.0, shape=(2,)),
    ]
    assert rules(run_checked(b.done(*values), "cse")) == []


def test_cse_merges_an_output():
    b = builder()
    x, _ = b.graph.inputs
    graph = run_checked(b.done(b.op(ReluOp, x), b.op(ReluOp, x)), "cse").graph
    assert graph.outputs[0] is graph.outputs[1]
