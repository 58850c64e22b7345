from __future__ import annotations

import torch

from tersor.ir import TensorType, Value
from tersor.ir.ops import AddOp, ConcatOp, MatmulOp, PermuteOp, ReluOp, SliceOp, SumOp
from tersor.tests.checks import kinds, record_of, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder() -> GraphBuilder:
    return GraphBuilder({"x": TensorType((4, 8)), "empty": TensorType((0, 8))})


def nothing(b: GraphBuilder) -> Value:
    return b.op(SliceOp, b.graph.inputs[0], axis=0, start=2, stop=2)


def test_what_has_no_elements_is_a_constant():
    b = builder()
    outcome = run_checked(b.done(b.op(ReluOp, nothing(b)), b.op(ReluOp, b.graph.inputs[1])), "fold-empty")
    assert [op.name for op in outcome.graph.ops] == ["full", "full"]


def test_what_is_computed_from_nothing_is_folded():
    b = builder()
    x, empty = b.graph.inputs
    total = b.op(SumOp, empty, axes=(0,))
    product = b.op(MatmulOp, b.op(PermuteOp, empty, dims=(1, 0)), empty)
    outcome = run_checked(b.done(b.op(AddOp, x, total), product), "fold-empty,fold-constants")
    assert kinds(outcome.graph) == ["add"]
    assert outcome.graph.outputs[1].op is not None
    assert outcome.graph.outputs[1].op.attrs.value == 0.0


def test_parts_without_elements_are_left_out():
    b = builder()
    x, empty = b.graph.inputs
    joined = b.op(ConcatOp, nothing(b), x, empty, axis=0)
    twice = b.op(ConcatOp, x, empty, x, axis=0)
    outcome = run_checked(b.done(b.op(ReluOp, joined), twice), "fold-empty")
    assert sorted((op.name, len(op.inputs)) for op in outcome.graph.ops) == [("concat", 2), ("relu", 1)]


def test_graphs_without_empty_tensors_stay_as_they_are():
    b = GraphBuilder({"x": TensorType((4, 8))})
    graph = b.done(b.op(AddOp, b.op(ReluOp, b.graph.inputs[0]), b.constant(torch.ones(8))))
    assert not record_of(run_checked(graph, "fold-empty"), "fold-empty").changed
