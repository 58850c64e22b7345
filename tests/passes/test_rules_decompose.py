"""Ops that canonicalization writes as ops that have kernels: numbers, refusals, and that they compile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tersor.ir import DType, Graph, Op, TensorType
from tersor.ir.ops import Conv2dOp, Conv3dOp, ConvTranspose2dOp, LinearOp, MulOp, SoftmaxOp
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
    assert "softmax" not in kinds(run_checked(softmax(axis, True), "canonicalize", fires="softmax-in-steps").graph)
    x = 40 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))  # most exponentials are 0
    x[0, 0, 0, 0], x[1, 1, 1, 1] = math.nan, -math.inf
    check(softmax(axis, True), x, pipeline="O3,layout")


def test_log_softmax_of_a_narrow_type_is_computed_in_float32():
    graph = run_checked(softmax(1, True, DType.F16), "canonicalize", fires="softmax-in-steps").graph
    assert [op.result.type.dtype for op in graph.ops][1:-1] == [DType.F32] * (len(graph.ops) - 2)
    check(softmax(1, True, DType.F16), pipeline="O3,layout", tolerance=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_in_double_precision(log: bool):
    check(softmax(1, log, DType.F64), pipeline="O3,layout", tolerance=1e-14)


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


def transposed(outputs: int, kernel: int, bias: bool = True, groups: int = 1, **window: Any) -> Graph:
    b = GraphBuilder({"x": TensorType((2, 6, 5, 7))})
    weight = b.weight(outputs, 6 // groups, kernel, kernel)
    operands = (b.graph.inputs[0], weight, b.weight(outputs) if bias else None)
    return b.done(b.op(ConvTranspose2dOp, *operands, groups=groups, **window))


@pytest.mark.parametrize(
    "graph",
    [
        transposed(1, 9, stride=(3, 3), padding=(4, 4), output_padding=(2, 2)),
        transposed(3, 4, stride=(2, 2), padding=(1, 1), bias=False),
        transposed(2, 3, stride=(4, 3), output_padding=(3, 2)),  # the last rows are nothing but the bias
        transposed(1, 5, stride=(3, 4), padding=(5, 2)),
    ],
)
def test_transposed_convolution_with_few_outputs(graph: Graph):
    outcome = run_checked(graph, "canonicalize", fires="few-outputs")
    assert "conv2d" in kinds(outcome.graph)


def test_transposed_convolutions_that_keep_their_kernel():
    graphs = (transposed(16, 4, stride=(2, 2)), transposed(1, 3), transposed(2, 4, groups=2, stride=(2, 2)))
    assert [rules(run_checked(graph, "canonicalize")) for graph in graphs] == [[], [], []]


def test_batch_normalisation_is_folded_before_outputs_are_moved():
    b = GraphBuilder({"x": TensorType((1, 6, 4, 4))})
    graph = b.done(b.batch_norm(b.op(ConvTranspose2dOp, b.graph.inputs[0], b.weight(2, 6, 4, 4), stride=(4, 4))))
    outcome = run_checked(graph, "O3", fires="few-outputs")
    assert "batch normalisation behind it" in refusals(outcome)[0]
    assert kinds(outcome.graph)[0] == "conv2d"
    assert "mul" not in kinds(outcome.graph)


def computed(kind: type[Op], shape: tuple[int, ...], weight: tuple[int, ...], bias: bool = True, **attrs: Any) -> Graph:
    """A layer whose weight is an input, and its bias too."""
    inputs = {"x": TensorType(shape), "w": TensorType(weight), "b": TensorType(weight[:1])}
    b = GraphBuilder(inputs)
    x, w, numbers = b.graph.inputs
    return b.done(b.op(kind, x, w, numbers if bias else None, **attrs))


COMPUTED = {
    "conv": computed(Conv2dOp, (2, 4, 6, 7), (6, 4, 3, 2), stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2)),
    "depthwise": computed(Conv2dOp, (1, 4, 5, 5), (4, 1, 3, 3), bias=False, padding=(1, 1, 1, 1), groups=4),
    "pointwise, groups": computed(Conv2dOp, (2, 4, 5, 5), (6, 2, 1, 1), groups=2),
    "volume": computed(Conv3dOp, (1, 4, 3, 4, 5), (2, 4, 2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 0, 0, 1, 0)),
}
COMPUTED_TRANSPOSED = {
    "strides": computed(
        ConvTranspose2dOp, (2, 4, 3, 4), (6, 4, 3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)
    ),
    "much cut off": computed(ConvTranspose2dOp, (1, 4, 6, 5), (2, 2, 2, 3), padding=(3, 0), dilation=(1, 2), groups=2),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_convolution_whose_weight_is_computed(name: str):
    run_checked(COMPUTED[name], "canonicalize", fires="conv-to-matmul")


@pytest.mark.parametrize("name", COMPUTED_TRANSPOSED)
def test_transposed_convolution_whose_weight_is_computed(name: str):
    run_checked(COMPUTED_TRANSPOSED[name], "canonicalize", fires="transposed-to-conv")


def test_linear_layer_of_one_row_whose_weight_is_computed():
    graph = computed(LinearOp, (8,), (5, 8))
    run_checked(graph, "canonicalize", fires="linear-to-matmul")
    check(graph, pipeline="O3,layout")


def test_computed_weights_compile():
    check(COMPUTED["conv"], pipeline="O3,layout")
    check(COMPUTED_TRANSPOSED["strides"], pipeline="O3,layout")
