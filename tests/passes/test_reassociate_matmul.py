"""Chains of matrix products in the cheapest order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tersor.ir import DType, TensorType, Value
from tersor.ir.ops import LinearOp, MatmulOp, ReluOp
from tersor.tests.checks import body, kinds, refusals, run_checked
from tersor.tests.random_graphs import GraphBuilder

RULE = "reassociate-matmul"


def builder(**shapes: tuple[int, ...]) -> GraphBuilder:
    return GraphBuilder({name: TensorType(shape) for name, shape in shapes.items()})


def matmul(b: GraphBuilder, lhs: Value, rhs: Value, *, transpose_rhs: bool = False) -> Value:
    return b.op(MatmulOp, lhs, rhs, transpose_rhs=transpose_rhs)


def macs(graph) -> int:
    return graph.cost().macs


def test_attention_without_softmax_is_linear_in_the_sequence():
    b = builder(q=(64, 4), k=(64, 4), v=(64, 4))
    q, k, v = b.graph.inputs
    graph = run_checked(b.done(matmul(b, matmul(b, q, k, transpose_rhs=True), v)), RULE, fires=RULE).graph
    expected = """
        graph @test(%q: f32[64,4], %k: f32[64,4], %v: f32[64,4]) {
        %0 = permute(%k) {dims=[1,0]} : f32[4,64] rule("reassociate-matmul")
        %1 = matmul(%0, %v) : f32[4,4] rule("reassociate-matmul")
        %2 = matmul(%q, %1) : f32[64,4] rule("reassociate-matmul")
        return %2
        }"""
    assert body(str(graph)) == body(expected)
    assert macs(graph) == 2 * 64 * 4 * 4


def test_the_textbook_chain():
    """Cormen et al., Introduction to Algorithms, section on matrix-chain multiplication: 15125 multiply-adds."""
    extents = [30, 35, 15, 5, 10, 20, 25]
    shapes = {f"a{i}": (rows, columns) for i, (rows, columns) in enumerate(pairwise(extents))}
    b = builder(**shapes)
    product, *rest = b.graph.inputs
    for factor in rest:
        product = matmul(b, product, factor)
    assert macs(run_checked(b.done(product), RULE, fires=RULE).graph) == 15125


def test_transposed_products_are_taken_apart():
    b = builder(x=(2, 40), y=(40, 30), z=(40, 30))
    x, y, z = b.graph.inputs
    graph = b.done(matmul(b, x, matmul(b, y, z, transpose_rhs=True), transpose_rhs=True))  # x z y^T
    optimized = run_checked(graph, RULE, fires=RULE).graph
    assert macs(optimized) == 2 * 40 * 30 * 2
    assert kinds(optimized) == ["matmul", "matmul"]


@pytest.mark.parametrize("batch", [(2,), (2, 3)])
def test_batches(batch):
    b = builder(q=(*batch, 16, 2), k=(*batch, 16, 2), v=(16, 2))
    q, k, v = b.graph.inputs
    graph = run_checked(b.done(matmul(b, matmul(b, q, k, transpose_rhs=True), v)), RULE, fires=RULE).graph
    assert kinds(graph) == ["permute", "matmul", "matmul"]


def test_two_linear_layers_become_one_where_that_is_cheaper():
    b = builder(x=(8, 6, 32))
    x = b.linear(b.linear(b.graph.inputs[0], 32, bias=False), 4)
    graph = run_checked(b.done(x), f"{RULE},canonicalize", fires=RULE).graph
    assert kinds(graph) == ["linear"]
    assert next(op for op in graph.ops if isinstance(op, LinearOp)).bias is not None


def test_factors_of_low_rank_stay_apart():
    b = builder(x=(8, 32))
    graph = b.done(b.linear(b.linear(b.graph.inputs[0], 2, bias=False), 32))
    assert kinds(run_checked(graph, RULE).graph) == ["linear", "linear"]


def test_the_best_order_is_left_alone():
    b = builder(q=(4, 64), k=(4, 64), v=(4, 64))
    q, k, v = b.graph.inputs
    graph = b.done(matmul(b, matmul(b, q, k, transpose_rhs=True), v))
    assert kinds(run_checked(graph, RULE).graph) == ["matmul", "matmul"]


def test_a_product_that_is_read_elsewhere_is_kept():
    b = builder(q=(64, 4), k=(64, 4), v=(64, 4))
    q, k, v = b.graph.inputs
    scores = matmul(b, q, k, transpose_rhs=True)
    outcome = run_checked(b.done(matmul(b, scores, v), b.op(ReluOp, scores)), RULE)
    assert kinds(outcome.graph) == ["matmul", "matmul", "relu"]
    assert refusals(outcome) == ["reassociate-matmul refused matmul: the product matmul is read elsewhere too"]


def test_a_bias_within_the_chain_ends_it():
    b = builder(x=(8, 32))
    graph = b.done(b.linear(b.linear(b.graph.inputs[0], 32, bias=True), 2, bias=False))
    assert kinds(run_checked(graph, RULE).graph) == ["linear", "linear"]


def test_bias_that_an_addition_would_round_is_refused():
    b = GraphBuilder({"x": TensorType((64, 4), DType.BF16), "y": TensorType((4, 64), DType.BF16)})
    product = matmul(b, *b.graph.inputs)
    weight, bias = b.constant(torch.ones(4, 64, dtype=torch.bfloat16)), b.constant(torch.ones(4))
    outcome = run_checked(b.done(b.op(LinearOp, product, weight, bias)), RULE)
    assert refusals(outcome) == [f"{RULE} refused linear: its bias is f32, which an addition would round"]
    assert kinds(outcome.graph) == ["matmul", "linear"]
