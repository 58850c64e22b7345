"""Layers of models that came with integers sum these."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor import from_torch, run_passes
from tersor.ir import DType, Graph
from tersor.ir.ops import Conv2dOp, DequantizeOp, LayerOp, MaxPool2dOp, MeanOp
from tersor.passes import PassManager, as_pipeline
from tersor.passes.instruments import CheckEach
from tersor.passes.numeric import seeded_inputs, step_rounding

from ...checks import kinds, refusals, run_checked
from ...quantized_modules import Residual, Rounded, RoundedLayer, ops

RULE = "integer-layers"


def graph_of(module: nn.Module, *shape: int) -> Graph:
    return from_torch(torch.export.export(module.eval(), (torch.randn(shape),)))


def summing(graph: Graph) -> list[str]:
    """Names of the layers whose operand, weight and sums are integers."""
    layers = [op for op in graph.ops if isinstance(op, LayerOp) and op.result.type.dtype is DType.I32]
    assert all(op.weight.type.dtype is DType.I8 for op in layers)
    return [op.name for op in layers]


def test_network():
    """Layers sum, pooling moves, averages are of integers; what was rounded to the same integers twice is not."""
    torch.manual_seed(0)
    outcome = run_checked(graph_of(Residual(), 2, 3, 8, 8), f"{RULE},dce", fires=RULE)
    graph = outcome.graph
    assert summing(graph) == ["conv2d", "conv2d", "linear"]
    assert [op.x.type.dtype for op in graph.ops if isinstance(op, MaxPool2dOp | MeanOp)] == [DType.U8] * 2
    assert kinds(graph).count("quantize") == 4
    weights = [op.weight.op.attrs.id for op in graph.ops if isinstance(op, LayerOp)]
    assert weights == ["first.integers..i8", "second.integers..i8", "head.integers..i8"]
    assert "relu" not in kinds(graph)[: kinds(graph).index("quantize", 2)]  # saturation does it


def test_weights_are_kept():
    """Their integers are not chosen anew: the largest of a channel is 120 here, not 127."""
    torch.manual_seed(0)
    module = Residual()
    graph = run_passes(graph_of(module, 1, 3, 8, 8), RULE)
    first = next(op for op in graph.ops if isinstance(op, Conv2dOp))
    assert torch.equal(first.weight.op.evaluate(), module.first.integers)
    assert torch.equal(first.bias.op.evaluate(), module.first.bias)


def test_check_each_allows_steps():
    """Sums are exact instead of rounded, which moves a number across an edge now and then."""
    torch.manual_seed(0)
    graph = graph_of(Residual(integer_biases=False), 2, 3, 8, 8)
    assert step_rounding(graph, seeded_inputs(graph)) > 1e-4
    outcome = PassManager(as_pipeline("O3"), (CheckEach(),)).run(graph)
    assert "conv2d_dequantize" in str(outcome.graph)  # in groups


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 6, 3), nn.Linear(9, 6)])
def test_a_bias_in_floating_point_is_not_rounded(layer):
    """Half a unit of the sums would be a thousandth of a step of what follows, many times f32's error."""
    torch.manual_seed(0)
    shape, step, rounded = (4, 8, 9, 9), 0.03, RoundedLayer(layer)
    graph = graph_of(nn.Sequential(Rounded(step, 120), rounded), *shape)
    integers = run_passes(graph, RULE)
    assert len(summing(integers)) == 1
    (sums,) = (op for op in integers.ops if isinstance(op, LayerOp))
    assert sums.bias is None
    x = torch.randn(shape)
    ours, theirs = integers.evaluate(x)[0], graph.evaluate(x)[0]
    unit = step * rounded.scales.min()  # of the sums; processors add floats in orders of their own
    assert (ours - theirs).abs().max() < unit / 10


def test_numbers_behind_a_float_bias_are_the_models():
    """Ten layers of drawn weights, the outputs in steps: nearly none is another."""
    torch.manual_seed(0)
    layers = []
    for _ in range(10):
        layers += [Rounded(0.02, 128), RoundedLayer(nn.Conv2d(8, 8, 3, padding=1)), nn.ReLU()]
    graph = graph_of(nn.Sequential(*layers, Rounded(0.01)), 1, 8, 12, 12)
    integers = run_passes(graph, f"{RULE},O2")
    x = torch.randn(1, 8, 12, 12)
    off = (integers.evaluate(x)[0] - graph.evaluate(x)[0]).abs()
    assert len(summing(integers)) == 10
    assert (off > 1e-6).double().mean() < 0.002
    scales = [op.attrs.scale for op in integers.ops if op.name == "quantize"][1:]
    assert set(scales) == {1.0}, "the step is divided out of the bias too, so that no multiplication is left for it"


def test_presets():
    for pipeline in ("O2", "O3"):
        graph = run_passes(graph_of(Residual(), 1, 3, 8, 8), pipeline)
        assert not any(isinstance(op, DequantizeOp) and op.x.type.dtype is DType.I8 for op in graph.ops)
        assert str(graph).count("i8[8,3,3,3]") >= 1


def test_product_with_a_matrix():
    """matmul(x, dequantize(w)) is a linear layer."""
    scales, zeros = torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.int64)

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = Rounded(0.05, 99)
            for name, tensor in (
                ("w", torch.randint(-128, 127, (6, 4), dtype=torch.int8)),
                ("s", scales),
                ("z", zeros),
            ):
                self.register_buffer(name, tensor)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.input(x) @ ops.dequantize_per_channel(self.w, self.s, self.z, 1, -128, 127, torch.int8)

    outcome = run_checked(graph_of(Product(), 3, 6), RULE, fires=RULE)
    assert summing(outcome.graph) == ["linear"]


def test_unsigned_weights():
    """Less their zero point they are i8 numbers."""

    class Unsigned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randint(0, 255, (4, 6), dtype=torch.uint8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, ops.dequantize_per_tensor(self.w, 0.01, 128, 0, 255, torch.uint8))

    outcome = run_checked(graph_of(nn.Sequential(Rounded(0.05), Unsigned()), 2, 6), RULE, fires=RULE)
    assert summing(outcome.graph) == ["linear"]


@pytest.mark.parametrize("way", ["zero points", "wrong axis", "float weight", "float operand"])
def test_stays_in_floating_point(way):
    scales, zeros = torch.rand(6) + 0.1, torch.tensor([0, 1, 0, 0, 0, 0])

    class Odd(nn.Module):
        w: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.input = Rounded(0.05, 99)
            self.register_buffer("w", torch.randint(-100, 100, (6, 6), dtype=torch.int8))
            self.register_buffer("s", scales)
            self.register_buffer("z", zeros if way == "zero points" else zeros * 0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x if way == "float operand" else self.input(x)
            axis = 1 if way == "wrong axis" else 0
            weight = ops.dequantize_per_channel(self.w, self.s, self.z, axis, -128, 127, torch.int8)
            return x @ (self.w.float() if way == "float weight" else weight).t()

    outcome = run_checked(graph_of(Odd(), 2, 6), f"{RULE},fold-constants")
    assert summing(outcome.graph) == []
    told = " ".join(refusals(outcome))
    assert ("scales along another dimension" in told) == (way == "wrong axis")


def test_float_models_are_left_alone():
    graph = graph_of(nn.Linear(3, 3), 1, 3)
    assert str(run_passes(graph, RULE)) == str(graph)
