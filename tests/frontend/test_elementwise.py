"""Converters of elementwise operators: activations, arithmetic, promotion, casts, constants."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tersor.frontend import from_torch

from .conftest import Lambda

UNARY = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "clamp": lambda x: x.clamp(-1, 0.5),
    "clamp one-sided": lambda x: x.clamp(min=0.1) + x.clamp(max=0.2),
    "clamp by tensors": lambda x: torch.clamp(x, x * 0.5, x * 0.5 + 1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3])),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.5),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: torch.log(x.abs() + 1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs() + 1),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "erf": torch.erf,
    "sin cos": lambda x: x.sin() + x.cos() * 2,
    "neg abs": lambda x: -x.abs(),
    "floor ceil": lambda x: x.floor() + 2 * x.ceil(),
    "square": torch.square,
    "glu": F.glu,
    "isnan": lambda x: torch.where((x - math.inf + math.inf).isnan(), 1.0, x),
}

BINARY = {
    "add": lambda x, y: x + y,
    "add alpha": lambda x, y: torch.add(x, y, alpha=2.5),
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=3),
    "rsub": lambda x, y: torch.rsub(x, y, alpha=2) + (1 - x),
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y.abs() + 1),
    "floor div": lambda x, y: x // (y.abs() + 1),
    "scalars": lambda x, y: (x + 1) * 2.5 - (3 / (y.abs() + 2)) / 7,
    "maximum minimum": lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    "pow": lambda x, y: (x.abs() + 0.1) ** y + x**2 + 2.0**y,
    "broadcast": lambda x, y: x[:, None, :] * y[None, :, :1],
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "compare": lambda x, y: (
        (x < y).float() + (x >= 0.5) * 2 + (x != y) * 4 + (x <= y) * 8 + (x > 0) * 16 + (x == x) * 32
    ),
    "logical": lambda x, y: (x > 0) & (y > 0) | ~(x > y),
    "logical_xor": lambda x, y: torch.logical_xor(x > 0, y),
    "bitwise_xor": lambda x, y: (x > 0) ^ (y > 0),
    "where": lambda x, y: torch.where(x > y, x, 0) + torch.where(x > y, 1.0, y),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, -math.inf).clamp(min=-5),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(name, check):
    check(UNARY[name], torch.randn(3, 4, 6))


@pytest.mark.parametrize("name", BINARY)
def test_binary(name, check):
    check(BINARY[name], torch.randn(4, 6), torch.randn(4, 6))


DTYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.mark.parametrize("right", DTYPES, ids=str)
@pytest.mark.parametrize("left", DTYPES, ids=str)
def test_promotion(left, right, check):
    x = torch.tensor([[1, 0], [3, 4]]).to(left)
    y = torch.tensor([1, 2]).to(right)

    def model(a, b):
        return a + b, a * b, a / b, a < b, torch.where(a > 0, a, b), a + b.sum()

    check(model, x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.int8], ids=str)
def test_scalars_do_not_promote_within_a_category(dtype, check):
    x = torch.arange(6).to(dtype)
    graph = check(lambda a: a * 2, x)
    assert graph.outputs[0].type.dtype.torch is dtype


def test_integers_become_floating(check):
    check(lambda a: (a.exp(), a / 2, a * 0.5, a.sigmoid(), a.float().mean(), a.floor()), torch.arange(4))


def test_casts(check):
    x = torch.randn(5) * 10
    check(lambda a: (a.int(), a.half(), a.to(torch.bool), a.double().to(a), a.type_as(a.long()), a.to("cpu")), x)


def test_constants(check):
    def model(x):
        filled = torch.full((2, 3), 1.5) + torch.zeros(3) + torch.ones(2, 1) + torch.full_like(x, 2)
        filled = filled + x.new_ones(3) + x.new_zeros(2, 3) + x.new_full((3,), 4.0) + torch.ones_like(x)
        steps = torch.arange(3) + torch.arange(1, 7, 2) + torch.linspace(0, 1, 3)
        return (
            filled + steps + torch.tensor([1.0, 2.0, 3.0]),
            torch.eye(3),
            torch.tril(torch.ones(3, 3)),
            torch.tril_indices(4, 3, -1),
        )

    check(model, torch.randn(2, 3))


IN_PLACE = {
    "activations": lambda x: F.relu_(x + 1).clamp_(max=2).sigmoid_(),
    "hardtanh_": lambda x: F.hardtanh_(x * 3, 0, 6),
    "arithmetic": lambda x: (x * 1).add_(1).mul_(2).sub_(x, alpha=2).div_(3),
    "masked_fill_": lambda x: (x * 1).masked_fill_(x > 0, 0.5),
    "fill_": lambda x: torch.empty(4, 6).fill_(2) + x * torch.zeros_like(x).fill_(3),
    "zero_": lambda x: (x + 1).zero_() + x,
    "copy_": lambda x: torch.zeros(4, 6).copy_(x[0]),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(name, check):
    check(IN_PLACE[name], torch.randn(4, 6))


def test_in_place_through_views(check):
    def model(x):
        y = x * 2
        y.view(-1).relu_()  # seen through every alias of y
        y[0] += 1
        y[:, 1:3] = 0.5
        y.t()[4].neg_()
        return y, y.sum()

    check(model, torch.randn(4, 6))


def test_dropout_is_the_identity_and_no_grad_regions_are_inlined(check):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x):
            with torch.no_grad():
                y = self.dropout(x).detach().clone().contiguous()
            return y * 2

    graph = check(Net(), torch.randn(3, 4))
    assert [op.name for op in graph.ops] == ["full", "mul"]


def test_expm1_and_log1p_do_not_cancel_near_zero(check):
    tiny = torch.tensor([1e-20, -1e-10, 3e-8])
    graph = check(lambda x: (torch.expm1(x), torch.log1p(x), F.elu(x)), tiny)
    for actual, function in zip(graph.evaluate(tiny), (torch.expm1, torch.log1p, F.elu), strict=True):
        torch.testing.assert_close(actual, function(tiny.double()).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floor_division_rounds_the_exact_quotient(check, dtype):
    dividends = torch.tensor([1.0, -1.0, 0.3, 7.0, -7.0, 6.0, 1e4, 0.6, 2.1], dtype=dtype)
    divisors = torch.tensor([0.1, 0.1, 0.1, 2.0, 2.0, -3.0, 0.7, 0.2, 0.7], dtype=dtype)
    rounded_first = torch.floor(dividends / divisors)
    assert bool((rounded_first != torch.div(dividends, divisors, rounding_mode="floor")).any())
    check(lambda x, y: torch.div(x, y, rounding_mode="floor"), dividends, divisors)
    check(lambda x: (x // 0.1, torch.floor_divide(x, 3)), dividends[:6])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integers_are_divided_shifted_and_combined(dtype, check):
    x, y = (one.flatten().to(dtype) for one in torch.meshgrid(torch.arange(-9, 10), torch.arange(-4, 5), indexing="ij"))
    y = y.where(y != 0, 5)

    def model(a, b):
        divided = (torch.div(a, b, rounding_mode="trunc"), a // b, a % b, torch.fmod(a, b), a // 3, 7 % b)
        return *divided, a & b, a | 6, a ^ b, ~a, a << b.clamp(0, 6), a >> b.clamp(0, 6)

    check(model, x, y)


def test_a_quotient_by_zero_is_zero():
    graph = from_torch(Lambda(lambda a, b: (a // b, a % b)), (torch.tensor([7, -7, 7]), torch.tensor([2, 2, 2])))
    quotient, rest = graph.evaluate(torch.tensor([7, -7, 7]), torch.tensor([0, 0, 2]))
    assert (quotient.tolist(), rest.tolist()) == ([0, 0, 3], [7, -7, 1])


def test_float64_is_divided_as_pytorch_does(check):
    numbers = torch.tensor([1.0, -1.0, 0.1, 7.5, -0.0, 1e300, 3.0], dtype=torch.float64)
    check(
        lambda a: (a[:, None] // a, a[:, None] % a, torch.div(a[:, None], a, rounding_mode="trunc")),
        numbers[numbers != 0],
    )
