"""Elementary functions on vectors against float64 PyTorch."""

from __future__ import annotations

import pytest
import torch

from tersor.targets.templates.base import BufferSpec
from tersor.targets.templates.elementwise import ElementwiseKnobs, ElementwiseSpec, build
from tersor.targets.templates.vector import vector_math
from tersor.targets.templates.vector.builder import load

from .window_cases import AVX512, TARGETS, run

SPECIAL = torch.tensor([float("-inf"), float("inf"), float("nan"), 0.0, -0.0, 1e-30, -1e-30])


def apply(function, x: torch.Tensor, target=AVX512) -> torch.Tensor:
    spec = ElementwiseSpec((x.numel(),), (BufferSpec("x", x.numel()),))
    prim_func = build(
        spec, target, ElementwiseKnobs(1), lambda at, buffers: function(load(buffers[0], at.flat, at.lanes))
    )
    return run(prim_func, target, x, out_elements=x.numel())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_exp_is_within_two_units_in_the_last_place(target):
    x = torch.linspace(-103.0, 88.7, 20_011)
    exact = x.double().exp()
    exponent = torch.frexp(exact).exponent.clamp(min=-125)
    unit = torch.ldexp(torch.ones_like(exact), exponent - 24)
    error = (apply(vector_math.exp, x, target).double() - exact).abs() / unit
    assert error.max() <= 2


def test_exp_beyond_the_range_of_float32():
    x = torch.tensor([float("-inf"), -1e30, -104.0, 89.0, 1e30, float("inf"), float("nan"), 0.0])
    result = apply(vector_math.exp, x)
    inf = float("inf")
    expected = torch.tensor([0.0, 0.0, 0.0, inf, inf, inf, float("nan"), 1.0])
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_log_is_within_two_units_in_the_last_place(target):
    x = torch.cat([torch.logspace(-44.5, 38.5, 20_011), torch.linspace(0.5, 2.0, 20_011)])
    exact = x.double().log()
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent.clamp(min=-125) - 24)
    assert ((apply(vector_math.log, x, target).double() - exact).abs() / unit)[x != 1].max() <= 2
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, -0.0, 1.0, inf, -inf, nan, -1.0, -1e-45, 1e-45])
    expected = torch.tensor([-inf, -inf, 0.0, inf, nan, nan, nan, nan, -103.278929903431851103])
    torch.testing.assert_close(apply(vector_math.log, special, target), expected, rtol=2e-7, atol=0, equal_nan=True)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """PyTorch's; of -inf it is infinity times 0, so NaN."""
    return torch.nn.functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize(
    ("function", "reference", "rtol", "atol"),
    [
        (vector_math.tanh, torch.tanh, 1e-6, 0.0),
        (vector_math.erf, torch.erf, 1e-6, 0.0),
        (vector_math.sigmoid, torch.sigmoid, 1e-6, 1e-37),
        (vector_math.silu, torch.nn.functional.silu, 1e-6, 1e-35),
        (vector_math.gelu, torch.nn.functional.gelu, 1e-6, 1e-6),
        (vector_math.gelu_tanh, gelu_tanh, 1e-6, 2e-6),
    ],
    ids=["tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh"],
)
def test_bounded_functions(function, reference, rtol, atol):
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.logspace(-8, 1.1, 2_000)
    x = torch.cat([SPECIAL, magnitudes, -magnitudes, torch.randn(3_000, generator=generator) * 4])
    torch.testing.assert_close(apply(function, x).double(), reference(x.double()), rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    ("function", "reference"), [(vector_math.log1p, torch.log1p), (vector_math.expm1, torch.expm1)]
)
def test_differences_from_one_do_not_cancel(function, reference):
    magnitudes = torch.logspace(-40, 1.9, 5_000)
    x = torch.cat([SPECIAL, magnitudes, -magnitudes, torch.linspace(-1, 1, 5_001)])
    torch.testing.assert_close(apply(function, x).double(), reference(x.double()), rtol=5e-7, atol=0, equal_nan=True)


def test_clamps_keep_not_a_number():
    x = torch.tensor([float("nan"), -2.0, 0.5, 9.0])
    clamped = apply(lambda value: vector_math.minimum(vector_math.maximum(value, 0.0), 6.0), x)
    torch.testing.assert_close(clamped, torch.clamp(x, 0.0, 6.0), rtol=0, atol=0, equal_nan=True)


def test_exp_of_nonpositive_numbers():
    x = torch.linspace(-86.5, 0.0, 20_011)
    torch.testing.assert_close(apply(vector_math.exp_nonpositive, x).double(), x.double().exp(), rtol=1.3e-7, atol=0)
    tiny = torch.tensor([float("-inf"), -1e30, -100.0, -87.0, float("nan"), 0.0, -0.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, float("nan"), 1.0, 1.0])
    result = apply(vector_math.exp_nonpositive, tiny)
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
