"""Models in half precision are computed in float32 and rounded; elementwise ops and reductions also in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.ir import TersorError
from tersor.tests.frontend.conftest import Lambda

SHAPE = (3, 37, 21)


def every_kind(x):
    maps = (
        x * 2 + x.relu(),
        x.exp(),
        F.gelu(x),
        F.silu(x),
        x.tanh().float(),
        (x > 0) * x,
        x.floor().int(),
        x % 0.7,
    )
    sums = (x.sum(1), x.mean((0, 2)), x.amax(-1), x.std(1), x[0].prod(-1), x.argmax(1), x.mean(), x.sum((0, 1, 2)))
    rows = (x.softmax(-1), x.log_softmax(1), x.cumsum(1), x.sort(0).values, x.topk(3).values, x.median(1).values)
    return *maps, *sums, *rows, x.to(torch.float32).half() * 3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.float64, 1e-13)], ids=str)
def test_values(dtype: torch.dtype, tolerance: float):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    program = tersor.compile(Lambda(every_kind), (x,))
    for actual, expected in zip(program(x), every_kind(x), strict=True):
        allowed = 2e-3 if expected.dtype is torch.float16 else tolerance
        torch.testing.assert_close(actual, expected, rtol=allowed, atol=allowed)


def test_layers_in_half_precision():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU6(), nn.MaxPool2d(2))
    rest = nn.Sequential(nn.Conv2d(24, 24, 3, groups=24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(24))
    model = nn.Sequential(*features, *rest, nn.Linear(24, 10)).half().eval()
    x = torch.randn(2, 3, 16, 16).half()
    torch.testing.assert_close(tersor.compile(model, (x,))(x), model(x), rtol=2e-3, atol=2e-3)


def test_layers_in_double_precision_are_refused():
    layer, x = nn.Linear(4, 3).double(), torch.randn(2, 4).double()
    with pytest.raises(TersorError, match=r"linear on f64\[2,4\]: kernels take operands of f32, bf16 or f16; cast"):
        tersor.compile(layer, (x,))
