"""Functions that are made of elementary ops, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-12)], ids=str)
def test_special_functions(dtype: torch.dtype, tolerance: float, check) -> None:
    x = torch.linspace(-20, 20, 1001, dtype=dtype)
    inside = torch.linspace(-1, 1, 1001, dtype=dtype)
    special = torch.special
    inputs = {
        special.i0: x,
        special.i0e: x,
        special.i1: x,
        special.i1e: x,
        torch.erfinv: inside,
        torch.digamma: x + 0.01,
    }
    graph = check(lambda *values: [one(value) for one, value in zip(inputs, values, strict=True)], *inputs.values())
    for (function, value), actual in zip(inputs.items(), graph.evaluate(*inputs.values()), strict=True):
        torch.testing.assert_close(actual, function(value), rtol=tolerance, atol=tolerance, msg=function.__name__)
