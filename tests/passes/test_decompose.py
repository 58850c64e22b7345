"""The pass ``decompose`` by itself, as it runs before every pipeline: what rules make, refuse and leave alone."""

from __future__ import annotations

from typing import Any

import pytest

from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import ConvTranspose2dOp, LinearOp, MulOp, SoftmaxOp
from tersor.measuring import PREPARING_PASSES
from tersor.passes import as_pipeline
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def softmax(dtype: DType = DType.F32, **attrs: Any) -> Graph:
    b = GraphBuilder({"x": TensorType((2, 5, 3, 4), dtype)})
    return b.done(b.op(SoftmaxOp, b.graph.inputs[0], **attrs))


def transposed(outputs: int = 2, *, folded: bool = True) -> Graph:
    b = GraphBuilder({"x": TensorType((2, 6, 5, 7))})
    made = b.op(ConvTranspose2dOp, b.graph.inputs[0], b.weight(outputs, 6, 4, 4), b.weight(outputs), stride=(2, 2))
    return b.done(made if folded else b.batch_norm(made))


def linear(*, computed: bool) -> Graph:
    b = GraphBuilder({"x": TensorType((3, 8)), "w": TensorType((5, 8))})
    x, w = b.graph.inputs
    weight = b.op(MulOp, w, b.weight(5, 1)) if computed else b.weight(5, 8)
    return b.done(b.op(LinearOp, x, weight, b.weight(5)))


FIRES = {
    "softmax-last-axis": (softmax(axis=1), ["permute", "softmax", "permute"]),
    "softmax-in-steps": (softmax(axis=1, log=True), ["reduce_max", "sub", "exp", "sum", "log", "sub"]),
    "few-outputs": (transposed(), ["conv2d", "reshape", "permute", "reshape", "slice", "slice"]),
    "linear-to-matmul": (linear(computed=True), ["mul", "matmul", "add"]),
}
LEAVES = {"the last axis": softmax(axis=3), "many outputs": transposed(16), "a constant weight": linear(computed=False)}


@pytest.mark.parametrize("rule", FIRES)
def test_fires_once_and_keeps_the_numbers(rule: str):
    graph, expected = FIRES[rule]
    outcome = run_checked(graph, "decompose", fires=rule)  # numbers, and that a second run changes nothing
    assert kinds(outcome.graph) == expected
    assert rules(outcome) == [rule]


@pytest.mark.parametrize("case", LEAVES)
def test_what_has_a_kernel_is_left_alone(case: str):
    outcome = run_checked(LEAVES[case], "decompose")
    assert rules(outcome) == refusals(outcome) == []
    assert not outcome.report.records[0].changed


@pytest.mark.parametrize(("dtype", "casts"), [(DType.BF16, ["cast"]), (DType.F64, [])])
def test_log_softmax_of_other_types(dtype: DType, casts: list[str]):
    outcome = run_checked(softmax(dtype, axis=1, log=True), "decompose", tolerance=1e-2)
    assert kinds(outcome.graph) == [*casts, *FIRES["softmax-in-steps"][1], *casts]


def test_refuses_before_a_batch_normalisation_that_is_not_folded_yet():
    outcome = run_checked(transposed(folded=False), "decompose")
    assert rules(outcome) == []
    assert [text.partition(": ")[2] for text in refusals(outcome)] == [
        "a batch normalisation behind it can be folded first"
    ]


def test_runs_before_every_pipeline():
    assert "decompose" in [one.name for one in as_pipeline(PREPARING_PASSES).passes]
