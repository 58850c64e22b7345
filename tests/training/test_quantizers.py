"""Gradients of rounding, against the papers' formulas written out with PyTorch's own."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType
from tersor.passes.quantization import QuantizationStep
from tersor.training import ActivationQuantizer, WeightQuantizer
from tersor.training.quantizers import QUANTIZERS

X = torch.linspace(-1.4, 3.3, 4 * 45).reshape(4, 45)


def through(rounded: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The numbers of the first, with the gradients of the second."""
    return (rounded - exact).detach() + exact


def lsq(x: torch.Tensor, step: torch.Tensor, low: int, high: int, count: int) -> torch.Tensor:
    """Esser et al. 2020, algorithm 1 of the appendix."""
    factor = 1 / math.sqrt(count * max(high, -low))
    step = through(step, step * factor)
    inside = torch.clamp(x / step, low, high)
    return through(inside.round(), inside) * step


@pytest.mark.parametrize(("zero_point", "dtype"), [(0, DType.U8), (70, DType.U8), (-11, DType.I8)])
def test_lsq(zero_point: int, dtype: DType):
    quantizer = QUANTIZERS.find("lsq")(QuantizationStep(0.0103, zero_point, dtype))
    low, high = quantizer.limits
    step = torch.tensor(0.0103, requires_grad=True)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    weights = torch.rand(X.shape, generator=torch.Generator().manual_seed(0))
    actual, expected = quantizer(x), lsq(y, step, low, high, 45)
    assert torch.allclose(actual, expected, atol=1e-6)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    (parameter,) = quantizer.parameters()
    assert x.grad is not None and y.grad is not None and torch.allclose(x.grad, y.grad)
    assert parameter.grad is not None and step.grad is not None
    assert torch.allclose(parameter.grad, step.grad, rtol=1e-4)


def test_pact():
    """Choi et al. 2018, equations 1 to 3: 1 where the activation is clipped, 0 elsewhere."""
    quantizer = QUANTIZERS.find("pact")(QuantizationStep(0.0103, 0, DType.U8))
    clip = torch.tensor(0.0103 * 255, requires_grad=True)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    bounded = 0.5 * (y.abs() - (y - clip).abs() + clip)
    actual = quantizer(x)
    assert torch.allclose(actual, (bounded / clip * 255).round() / 255 * clip, atol=1e-6)
    actual.sum().backward()
    bounded.sum().backward()
    (parameter,) = quantizer.parameters()
    assert parameter.grad is not None and clip.grad is not None and clip.grad > 5
    assert torch.allclose(parameter.grad, clip.grad, rtol=1e-4)
    assert torch.equal(x.grad, y.grad)


def test_weights_have_a_step_for_each_channel():
    weight = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 5, 0.1]).reshape(
        3, 1, 1, 1
    )
    quantizer = WeightQuantizer(weight, 4)
    largest = weight.abs().amax((1, 2, 3))
    assert torch.allclose(quantizer.step_sizes, largest / 7)
    with torch.no_grad():
        quantizer.step_sizes *= 0.8
    x, y = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    steps = quantizer.step_sizes.detach().clone().requires_grad_()
    actual, expected = quantizer(x), lsq(y, steps.reshape(3, 1, 1, 1), -7, 7, 20)
    assert torch.allclose(actual, expected, atol=1e-6)
    integers = (actual / quantizer.step_sizes.reshape(3, 1, 1, 1)).detach()
    assert torch.allclose(integers, integers.round(), atol=1e-4) and integers.abs().max() < 7.001
    actual.square().sum().backward()
    expected.square().sum().backward()
    assert x.grad is not None and y.grad is not None and torch.allclose(x.grad, y.grad)
    assert quantizer.step_sizes.grad is not None and torch.allclose(quantizer.step_sizes.grad, steps.grad, rtol=1e-3)


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_every_quantizer_begins_where_calibration_ended(name: str):
    step = QuantizationStep(0.02, 37, DType.U8)
    quantizer = QUANTIZERS.find(name)(step)
    assert isinstance(quantizer, ActivationQuantizer)
    assert quantizer.step.scale == pytest.approx(0.02) and quantizer.step.zero_point == 37
    assert torch.allclose(quantizer(X), step.nearest(X), atol=1e-5)
    other = QUANTIZERS.find(name)(QuantizationStep(1.0, 0, DType.U8))
    other.load_state_dict(quantizer.state_dict())
    assert other.step == quantizer.step
