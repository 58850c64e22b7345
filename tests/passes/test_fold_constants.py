from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, TensorType, parse
from tersor.ir.ops import AddOp, ConcatOp, ExpandOp, MulOp, PermuteOp, ReluOp, ReshapeOp
from tersor.passes import PassManager, PipelineError, parse_pipeline
from tersor.tests.checks import body, kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (2, 3))})


def test_chain_of_constants_becomes_one_weight():
    b = builder()
    constant = b.op(AddOp, b.op(PermuteOp, b.weight(3, 2, hint="table"), dims=(1, 0)), b.number(0.5))
    outcome = run_checked(b.done(b.op(MulOp, b.graph.inputs[0], constant)), "fold-constants", tolerance=1e-6)
    assert kinds(outcome.graph) == ["mul"]
    assert list(outcome.graph.weights) == ["table.folded..1"]
    expected = """
        graph @test(%x: f32[2,3]) {
        %0 = weight {id="table.folded..1", type=f32[2,3]} : f32[2,3] rule("fold-constants")
        %1 = mul(%x, %0) : f32[2,3]
        return %1
        }"""
    assert body(str(outcome.graph)) == body(expected)


def test_uniform_result_becomes_full():
    b = builder()
    zeros = b.op(ReluOp, b.constant(-torch.ones(3)))
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], zeros)), "fold-constants")
    assert [op.name for op in outcome.graph.ops] == ["full", "add"]
    assert outcome.graph.ops[0].attrs.value == 0.0


def test_one_number_that_is_expanded_becomes_full():
    b = builder()
    expanded = b.op(ExpandOp, b.op(ReluOp, b.constant(torch.tensor(2.0))), shape=(1,))  # its stride is 0
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], expanded)), "fold-constants")
    assert [op.name for op in outcome.graph.ops] == ["full", "add"]


def test_zeros_of_two_signs_are_not_uniform():
    b = builder()
    zeros = b.op(ReshapeOp, b.constant(torch.tensor([[0.0], [-0.0], [0.0]])), shape=(3,))
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], zeros)), "fold-constants")
    assert [op.name for op in outcome.graph.ops] == ["weight", "add"]


def test_full_tensors_fold_without_growing():
    b = builder(1 << 20)
    large = b.op(ExpandOp, b.number(2.0), shape=(1 << 20,))
    outcome = run_checked(b.done(b.op(MulOp, b.graph.inputs[0], large)), "fold-constants")
    assert [op.name for op in outcome.graph.ops] == ["full", "mul"]


def test_scalar_weight_becomes_full():
    b = builder()
    scale = b.constant(torch.tensor(0.1))
    outcome = run_checked(b.done(b.op(MulOp, b.graph.inputs[0], scale)), "fold-constants", tolerance=1e-7)
    assert [op.name for op in outcome.graph.ops] == ["full", "mul"]


def test_output_that_is_constant():
    b = builder()
    outcome = run_checked(b.done(b.op(ReluOp, b.weight(4))), "fold-constants")
    assert outcome.graph.outputs[0].op.name == "weight"


def test_growing_result_is_refused():
    b = builder(512, 1024)
    grown = b.op(ExpandOp, b.weight(1024), shape=(512, 1024))
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], grown)), "fold-constants")
    assert refusals(outcome) == [
        "fold-constants refused expand: the result f32[512,1024] is much larger than the operands"
    ]


def test_growth_is_an_option():
    b = builder(512, 1024)
    grown = b.op(ExpandOp, b.weight(1024), shape=(512, 1024))
    graph = b.done(b.op(AddOp, b.graph.inputs[0], grown))
    run_checked(graph, "fold-constants{max_growth=1000.0}", fires="fold-constants")


def test_large_result_is_refused():
    b = builder(2, 1000)
    joined = b.op(ConcatOp, b.weight(1, 1000), b.weight(1, 1000), axis=0)
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], joined)), "fold-constants{limit_mb=0.001}")
    assert refusals(outcome) == ["fold-constants refused concat: the result f32[2,1000] is larger than 0.001 MB"]


def test_missing_weights_are_refused():
    b = builder()
    graph = b.done(b.op(MulOp, b.graph.inputs[0], b.op(ReluOp, b.weight(3))))
    outcome = PassManager(parse_pipeline("fold-constants")).run(parse(str(graph)))
    assert rules(outcome) == []
    assert refusals(outcome) == ["fold-constants refused relu: the weights are not loaded"]


def test_integers_and_booleans_fold():
    b = GraphBuilder({"x": TensorType((3,), DType.I64)})
    ids = b.op(AddOp, b.constant(torch.arange(3)), b.constant(torch.ones(3, dtype=torch.int64)))
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], ids)), "fold-constants", fires="fold-constants")
    assert kinds(outcome.graph) == ["add"]


def test_options_are_validated():
    with pytest.raises(
        PipelineError, match=r"column 1: pass 'fold-constants': limit_mb and max_growth must be positive"
    ):
        parse_pipeline("fold-constants{limit_mb=0}")
