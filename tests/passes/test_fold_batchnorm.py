from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, TensorType, parse
from tersor.ir.ops import AddOp, BatchNormOp, Conv2dOp, LinearOp, PadOp, ReluOp
from tersor.passes import PassManager, parse_pipeline
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (1, 4, 6, 6))})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folds_into_plain_grouped_and_depthwise_conv(groups, bias):
    b = builder()
    graph = b.done(b.batch_norm(b.conv(b.graph.inputs[0], 4, groups=groups, bias=bias)))
    outcome = run_checked(graph, "fold-batchnorm", tolerance=2e-6)
    assert rules(outcome) == ["fold-batchnorm"]
    assert kinds(outcome.graph) == ["conv2d"]
    assert outcome.graph.outputs[0].op.location == "conv"
    assert len(outcome.graph.weights) == 2


def test_folds_into_linear():
    b = builder(3, 5)
    graph = b.done(b.batch_norm(b.linear(b.graph.inputs[0], 7)))
    assert kinds(run_checked(graph, "fold-batchnorm", tolerance=2e-6).graph) == ["linear"]


def test_folds_without_gamma_and_beta():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    norm = b.op(BatchNormOp, conv, b.weight(4), b.weight(4, positive=True), location="bn", eps=0.1)
    assert kinds(run_checked(b.done(norm), "fold-batchnorm", tolerance=2e-6).graph) == ["conv2d"]


def test_shared_weight_keeps_its_numbers():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    again = b.op(type(conv.op), b.op(ReluOp, conv.op.x), *conv.op.operands[1:], padding=(1, 1, 1, 1))
    original = b.graph.weights["conv.weight"].clone()
    graph = b.done(b.batch_norm(conv), again)
    outcome = run_checked(graph, "fold-batchnorm")
    assert torch.equal(outcome.graph.weights["conv.weight"], original)
    assert "conv.weight..folded" in outcome.graph.weights


def test_conv_that_is_read_elsewhere_is_refused():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    outcome = run_checked(b.done(conv, b.batch_norm(conv)), "fold-batchnorm")
    assert refusals(outcome) == ["fold-batchnorm refused batch_norm at 'bn': the layer's result is read elsewhere too"]
    assert kinds(outcome.graph) == ["conv2d", "mul", "add"]


def test_without_a_layer_it_becomes_scale_and_shift():
    b = builder(2, 4, 3)
    outcome = run_checked(b.done(b.batch_norm(b.graph.inputs[0])), "fold-batchnorm", tolerance=2e-6)
    assert rules(outcome) == ["batchnorm-to-affine"]
    assert kinds(outcome.graph) == ["mul", "add"]
    assert sorted(outcome.graph.weights) == ["bn.scale", "bn.shift"]


def test_linear_over_a_sequence_is_refused():
    b = builder(2, 4, 3)
    graph = b.done(b.batch_norm(b.linear(b.graph.inputs[0], 5)))
    outcome = run_checked(graph, "fold-batchnorm")
    (refusal,) = refusals(outcome)
    assert refusal.endswith("the linear layer's features are not the channels that are normalised")


def test_parameters_that_are_not_constant_are_refused():
    b = GraphBuilder({"x": TensorType((1, 4, 2, 2)), "mean": TensorType((4,))})
    x, mean = b.graph.inputs
    norm = b.op(BatchNormOp, x, mean, b.weight(4, positive=True))
    outcome = run_checked(b.done(norm), "fold-batchnorm")
    assert rules(outcome) == []
    assert refusals(outcome) == [
        "fold-batchnorm refused batch_norm: a parameter is not constant, or the weights are not loaded"
    ]


def test_weights_that_are_not_constant_are_refused():
    b = GraphBuilder({"x": TensorType((2, 3)), "w": TensorType((4, 3))})
    layer = b.op(LinearOp, *b.graph.inputs)
    outcome = run_checked(b.done(b.batch_norm(layer)), "fold-batchnorm")
    assert refusals(outcome) == [
        "fold-batchnorm refused batch_norm at 'bn': the layer's weights are not constant, or not loaded"
    ]


def test_missing_weights_are_refused():
    b = builder()
    text = str(b.done(b.batch_norm(b.conv(b.graph.inputs[0], 4))))
    outcome = PassManager(parse_pipeline("O3")).run(parse(text))
    assert "batch_norm" in kinds(outcome.graph)


def test_scale_that_overflows_is_refused():
    b = builder()
    conv = b.conv(b.graph.inputs[0], 4)
    parameters = [torch.zeros(4), torch.ones(4), torch.full((4,), 3e38)]
    norm = b.op(BatchNormOp, conv, *(b.constant(numbers * 1.0) for numbers in parameters), location="bn", eps=0.0)
    conv.op.graph.weights._tensors["conv.weight"] = torch.full((4, 4, 3, 3), 100.0)
    outcome = PassManager(parse_pipeline("fold-batchnorm")).run(b.done(norm))
    assert refusals(outcome) == ["fold-batchnorm refused batch_norm at 'bn': a folded weight or bias is not finite"]


def test_o2_folds_what_canonicalization_uncovers():
    """conv + constant is a bias; a padding in front of the convolution goes into it; then the normalisation folds."""
    b = builder()
    padded = b.op(PadOp, b.graph.inputs[0], before=(0, 0, 0, 0), after=(0, 0, 1, 1))
    shifted = b.op(AddOp, b.conv(padded, 4, bias=False), b.weight(4, 1, 1))
    outcome = run_checked(b.done(b.op(ReluOp, b.batch_norm(shifted))), "O2")
    assert kinds(outcome.graph) == ["conv2d", "relu"]


@pytest.mark.parametrize("after_conv", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_kept(bad, after_conv):
    b = builder()
    x = b.conv(b.graph.inputs[0], 4) if after_conv else b.graph.inputs[0]
    gamma, mean = torch.tensor([1.0, bad, 2.0, 3.0]), torch.zeros(4)
    norm = b.op(BatchNormOp, x, b.constant(mean), b.weight(4, positive=True), b.constant(gamma), b.weight(4))
    graph = b.done(norm)
    outcome = PassManager(parse_pipeline("fold-batchnorm")).run(graph)
    assert kinds(outcome.graph) == ["conv2d", "mul", "add"][not after_conv :]
    numbers = torch.randn(1, 4, 6, 6, generator=b.generator)
    expected, actual = graph.evaluate(numbers)[0], outcome.graph.evaluate(numbers)[0]
    assert not actual[:, 1].isfinite().any()
    torch.testing.assert_close(actual[:, [0, 2, 3]], expected[:, [0, 2, 3]])


def test_folding_keeps_the_precision_of_the_bias():
    b = GraphBuilder({"x": TensorType((1, 2, 3, 3), DType.BF16)})
    weight, bias = b.constant(torch.ones(2, 2, 1, 1, dtype=torch.bfloat16)), b.constant(torch.full((2,), 1 + 2**-10))
    conv = b.op(Conv2dOp, b.graph.inputs[0], weight, bias)
    zero, one = (b.constant(torch.full((2,), value).bfloat16()) for value in (0.0, 1.0))
    norm = b.op(BatchNormOp, conv, zero, one, eps=0.0)
    outcome = PassManager(parse_pipeline("fold-batchnorm")).run(b.done(norm))
    assert kinds(outcome.graph) == ["conv2d"]
    assert torch.equal(outcome.graph.outputs[0].op.bias.op.evaluate(), torch.full((2,), 1 + 2**-10))
