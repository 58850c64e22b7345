"""Reductions over rows with a large common offset: what they sum must not cancel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor
from tersor.tests.frontend.conftest import Lambda

TOLERANCE = 1e-5  # of the largest output

Function = Callable[[torch.Tensor], torch.Tensor]
CASES: dict[str, tuple[Function | nn.Module, tuple[int, ...]]] = {
    "layer norm": (nn.LayerNorm(48), (7, 48)),
    "layer norm of a short row": (nn.LayerNorm(5), (4, 5)),
    "layer norm of a plane": (nn.LayerNorm((7, 9)), (2, 3, 7, 9)),
    "group norm": (nn.GroupNorm(2, 6), (2, 6, 24, 25)),
    "instance norm of a large picture": (nn.InstanceNorm2d(1), (1, 1, 256, 250)),
    "variance of rows": (lambda x: x.var(-1), (3, 300)),
    "variance of columns": (lambda x: x.var(0), (20000, 3)),
    "deviation of planes": (lambda x: x.std((2, 3), correction=0), (2, 3, 20, 19)),
    "centred mean of channels": (lambda x: x - x.mean(1, keepdim=True), (1, 2000, 3, 3)),
    "centred pooled mean": (lambda x: x - F.adaptive_avg_pool2d(x, 1), (1, 3, 90, 91)),
    "softmax": (lambda x: x.softmax(-1), (4, 100)),
    "log softmax": (lambda x: x.log_softmax(1), (4, 10, 9)),
    "logsumexp": (lambda x: x.logsumexp(-1) - x.amax(-1), (4, 100)),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_do_not_cancel(name: str):
    model, shape = CASES[name]
    module = (model if isinstance(model, nn.Module) else Lambda(model)).eval()
    compiled = None
    for offset in (0.0, 1e2, 1e4):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + offset
        with torch.no_grad():
            expected = module.double()(x.double())
        module.float()
        compiled = compiled or tersor.compile(module, (x,))
        difference = (compiled(x).double() - expected).abs().max() / expected.abs().max()
        # A mean is rounded to float32, which leaves half a unit in its last place of what is subtracted from it.
        rounding = offset * 2**-24 * 2 if name.startswith(("centred", "logsumexp")) else 0.0
        assert difference < TOLERANCE + rounding, f"offset {offset}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "product",
    [lambda x: x.mean(1, keepdim=True), lambda x: x * 0.3, lambda x: F.silu(x) * x],
    ids=["mean", "mul", "silu"],
)
def test_a_product_less_itself_is_zero(product: Function, dtype: torch.dtype):
    """One of the two must not be merged with its multiplication, and so be rounded less than the other."""
    module = Lambda(lambda x: (value := product(x)) - value.clone())
    x = torch.randn(7, 9, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert not tersor.compile(module, x, check=False)(x).any()
