"""Ops that canonicalization writes as ops that have kernels: numbers, refusals, and that they compile."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import LinearOp, MulOp, SoftmaxOp
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder
from tersor.tests.targets.compiled import check


def softmax(axis: int, log: bool, dtype: DType = DType.F32) -> Graph:
    b = GraphBuilder({"x": TensorType((2, 5, 3, 4), dtype)})
    return b.done(b.op(SoftmaxOp, b.graph.inputs[0], axis=axis, log=log))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_along_another_axis(axis: int):
    outcome = run_checked(softmax(axis, False), "canonicalize", fires="softmax-last-axis")
    assert kinds(outcome.graph) == ["permute", "softmax", "permute"]
    check(softmax(axis, False), pipeline="O3,layout")


def test_softmax_along_the_last_axis_is_left_alone():
    assert rules(run_checked(softmax(3, False), "canonicalize")) == []


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_log_softmax(axis: int):
    assert "softmax" not in kinds(run_checked(softmax(axis, True), "canonicalize", fires="log-softmax").graph)
    x = 40 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))  # most exponentials are 0
    x[0, 0, 0, 0], x[1, 1, 1, 1] = math.nan, -math.inf
    check(softmax(axis, True), x, pipeline="O3,layout")


def test_log_softmax_of_a_narrow_type_is_refused():
    outcome = run_checked(softmax(1, True, DType.BF16), "canonicalize")
    assert refusals(outcome) == [
        "log-softmax refused softmax: the steps would round to a narrow type, or have no kernel for a wide one"
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layer_whose_weight_is_computed(bias: bool):
    b = GraphBuilder({"x": TensorType((2, 3, 8)), "w": TensorType((5, 8))})
    x, w = b.graph.inputs
    operands = (x, b.op(MulOp, w, b.weight(5, 1)), b.weight(5) if bias else None)
    graph = b.done(b.op(LinearOp, *operands))
    run_checked(graph, "canonicalize", fires="linear-to-matmul")
    check(graph, pipeline="O3,layout")


def test_linear_layer_whose_weight_will_be_folded_is_left_alone():
    b = GraphBuilder({"x": TensorType((2, 8))})
    graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.op(MulOp, b.weight(5, 8), b.weight(5, 1)), None))
    assert rules(run_checked(graph, "canonicalize")) == []
