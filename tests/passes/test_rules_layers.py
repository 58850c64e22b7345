from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, TensorType
from tersor.ir.ops import (
    AdaptiveAvgPool2dOp,
    AddOp,
    AvgPool2dOp,
    Conv2dOp,
    MatmulOp,
    MaxPool2dOp,
    PadOp,
    PermuteOp,
    ReluOp,
)
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (1, 4, 6, 8))})


# Biases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), ()])
def test_addition_after_conv_becomes_its_bias(bias, shape):
    b = builder()
    conv = b.conv(b.graph.inputs[0], 6, bias=bias)
    outcome = run_checked(b.done(b.op(AddOp, conv, b.weight(*shape))), "canonicalize", fires="bias-operand")
    assert kinds(outcome.graph) == ["conv2d"]


@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (1,)])
def test_addition_after_linear_becomes_its_bias(shape):
    b = builder(2, 3, 5)
    graph = b.done(b.op(AddOp, b.linear(b.graph.inputs[0], 6, bias=False), b.weight(*shape)))
    assert kinds(run_checked(graph, "canonicalize", fires="bias-operand").graph) == ["linear"]


def test_addition_that_varies_over_the_plane_is_refused():
    b = builder()
    outcome = run_checked(b.done(b.op(AddOp, b.conv(b.graph.inputs[0], 6), b.weight(8))), "canonicalize")
    assert refusals(outcome) == ["bias-operand refused add: f32[8] is not one number per output channel"]


def test_addition_to_a_shared_conv_is_refused():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 6)
    outcome = run_checked(b.done(conv, b.op(AddOp, conv, b.weight(6, 1, 1))), "canonicalize")
    assert refusals(outcome) == ["bias-operand refused add: the layer's result is read elsewhere too"]


def test_addition_that_broadcasts_the_conv_is_refused():
    b = builder()
    outcome = run_checked(b.done(b.op(AddOp, b.conv(b.graph.inputs[0], 6), b.weight(1, 1, 6, 1, 1))), "canonicalize")
    assert refusals(outcome) == ["bias-operand refused add: the sum has another shape than the layer's result"]


# Matrix products ------------------------------------------------------------------------------------------------


def test_transposed_rhs_becomes_an_attribute():
    b = GraphBuilder({"x": TensorType((2, 3, 4)), "y": TensorType((2, 5, 4))})
    x, y = b.graph.inputs
    graph = b.done(b.op(MatmulOp, x, b.op(PermuteOp, y, dims=(0, 2, 1))))
    outcome = run_checked(graph, "canonicalize", fires="transpose-operand")
    assert [op.attrs.transpose_rhs for op in outcome.graph.ops] == [True]


def test_transposed_twice_cancels():
    b = GraphBuilder({"x": TensorType((2, 3, 4)), "y": TensorType((2, 4, 5))})
    x, y = b.graph.inputs
    graph = b.done(b.op(MatmulOp, x, b.op(PermuteOp, y, dims=(0, 2, 1)), transpose_rhs=True))
    outcome = run_checked(graph, "canonicalize", fires="transpose-operand")
    assert [op.attrs.transpose_rhs for op in outcome.graph.ops] == [False]


def test_other_permutation_of_rhs_stays():
    b = GraphBuilder({"x": TensorType((2, 3, 4)), "y": TensorType((4, 2, 5))})
    x, y = b.graph.inputs
    assert rules(run_checked(b.done(b.op(MatmulOp, x, b.op(PermuteOp, y, dims=(1, 0, 2)))), "canonicalize")) == []


@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_with_constant_matrix_is_linear(transposed):
    b = builder(2, 3, 4)
    weight = b.weight(5, 4) if transposed else b.weight(4, 5)
    graph = b.done(b.op(MatmulOp, b.graph.inputs[0], weight, transpose_rhs=transposed))
    assert kinds(run_checked(graph, "canonicalize", fires="matmul-to-linear").graph) == ["linear"]


def test_matmul_with_constant_batch_stays():
    b = builder(2, 3, 4)
    graph = b.done(b.op(MatmulOp, b.graph.inputs[0], b.weight(2, 4, 5)))
    assert rules(run_checked(graph, "canonicalize")) == []


# Padding --------------------------------------------------------------------------------------------------------


def pad(b: GraphBuilder, x, before, after, value=0.0):
    return b.op(PadOp, x, before=(0, 0, *before), after=(0, 0, *after), value=value)


def test_zero_padding_goes_into_conv():
    b = builder()
    padded = pad(b, b.graph.inputs[0], (0, 1), (2, 3))
    outcome = run_checked(b.done(b.conv(padded, 4)), "canonicalize", fires="pad-into-conv")
    assert outcome.graph.outputs[0].op.attrs.padding == (1, 2, 3, 4)
    assert outcome.graph.outputs[0].op.location == "conv"


@pytest.mark.parametrize(("channels", "value"), [(0, 1.0), (1, 0.0)])
def test_other_padding_before_conv_is_refused(channels, value):
    b = builder()
    padded = b.op(PadOp, b.graph.inputs[0], before=(0, channels, 1, 1), after=(0, 0, 1, 1), value=value)
    outcome = run_checked(b.done(b.conv(padded, 4)), "canonicalize")
    assert refusals(outcome) == [
        "pad-into-conv refused conv2d at 'conv': the padding is not zeros around height and width"
    ]


@pytest.mark.parametrize("after_relu", [False, True])
def test_padding_goes_into_max_pool(after_relu):
    b = builder()
    x = b.op(ReluOp, b.graph.inputs[0]) if after_relu else b.graph.inputs[0]
    padded = pad(b, x, (1, 1), (1, 1), 0.0 if after_relu else -math.inf)
    graph = b.done(b.op(MaxPool2dOp, padded, kernel=(3, 3), stride=(2, 2)))
    outcome = run_checked(graph, "canonicalize", fires="pad-into-pool")
    assert outcome.graph.outputs[0].op.attrs.padding == (1, 1)


def test_padding_goes_into_avg_pool():
    b = builder()
    graph = b.done(b.op(AvgPool2dOp, pad(b, b.graph.inputs[0], (1, 1), (1, 1)), kernel=(3, 3), stride=(1, 2)))
    run_checked(graph, "canonicalize", fires="pad-into-pool")


@pytest.mark.parametrize(
    ("kind", "before", "after", "value", "attrs", "reason"),
    [
        (MaxPool2dOp, (1, 1), (1, 1), 0.0, {}, "padding with 0 can be the maximum of a window"),
        (MaxPool2dOp, (0, 1), (1, 1), -math.inf, {}, "the padding is not the same on both sides of height and width"),
        (MaxPool2dOp, (2, 2), (2, 2), -math.inf, {}, "it would be more than half a window"),
        (
            MaxPool2dOp,
            (1, 1),
            (1, 1),
            -math.inf,
            {"ceil": True},
            "ceil mode and dilation change which windows there are",
        ),
        (AvgPool2dOp, (1, 1), (1, 1), 1.0, {}, "the average does not count padded zeros"),
        (
            AvgPool2dOp,
            (0, 1),
            (0, 1),
            0.0,
            {"padding": (1, 0), "count_include_pad": False},
            "the average does not count padded zeros",
        ),
    ],
)
def test_padding_before_pool_is_refused(kind, before, after, value, attrs, reason):
    b = builder()
    padded = pad(b, b.graph.inputs[0], before, after, value)
    graph = b.done(b.op(kind, padded, **({"kernel": (3, 3), "stride": (1, 1)} | attrs)))
    outcome = run_checked(graph, "canonicalize")
    assert refusals(outcome) == [f"pad-into-pool refused {kind.name}: {reason}"]


# Pooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), ["mean"]), ((3, 4), ["avg_pool2d"]), ((6, 8), []), ((1, 8), ["avg_pool2d"])]
)
def test_adaptive_pool(size, expected):
    b = builder()
    graph = b.done(b.op(AdaptiveAvgPool2dOp, b.graph.inputs[0], size=size))
    assert kinds(run_checked(graph, "canonicalize", fires="adaptive-pool").graph) == expected


def test_adaptive_pool_with_unequal_windows_is_refused():
    b = builder()
    outcome = run_checked(b.done(b.op(AdaptiveAvgPool2dOp, b.graph.inputs[0], size=(4, 4))), "canonicalize")
    assert refusals(outcome) == [
        "adaptive-pool refused adaptive_avg_pool2d: a plane of (6, 8) does not divide into (4, 4) equal windows"
    ]


def test_average_over_the_plane_is_a_mean():
    b = builder()
    graph = b.done(b.op(AvgPool2dOp, b.graph.inputs[0], kernel=(6, 8), stride=(1, 1)))
    assert kinds(run_checked(graph, "canonicalize", fires="global-pool").graph) == ["mean"]


def test_average_over_part_of_the_plane_stays():
    b = builder()
    graph = b.done(b.op(AvgPool2dOp, b.graph.inputs[0], kernel=(6, 7), stride=(1, 1)))
    assert rules(run_checked(graph, "canonicalize")) == []


def test_location_and_rule_are_kept():
    b = builder()
    padded = pad(b, b.graph.inputs[0], (1, 1), (1, 1))
    conv = run_checked(b.done(b.conv(padded, 4, location="layer1.0.conv1")), "canonicalize").graph.outputs[0].op
    assert isinstance(conv, Conv2dOp)
    assert (conv.location, conv.rule) == ("layer1.0.conv1", "pad-into-conv")


def test_bias_operand_keeps_location_and_precision_of_the_bias():
    """A bf16 convolution may have an f32 bias; 1 + 2^-10 would be rounded to 1 in bf16."""
    b = GraphBuilder({"x": TensorType((1, 2, 3, 3), DType.BF16)})
    weight, addend = (
        b.constant(torch.ones(2, 2, 1, 1, dtype=torch.bfloat16)),
        b.constant(torch.ones(2, 1, 1).bfloat16()),
    )
    bias = b.constant(torch.full((2,), 2**-10))
    conv = b.op(Conv2dOp, b.graph.inputs[0], weight, bias, location="conv")
    graph = b.done(b.op(AddOp, conv, addend, location="add"))
    outcome = run_checked(graph, "canonicalize", fires="bias-operand", tolerance=0.01)
    merged = outcome.graph.outputs[0].op
    assert merged.location == "conv"
    assert torch.equal(merged.bias.op.evaluate(), torch.full((2,), 1 + 2**-10))
