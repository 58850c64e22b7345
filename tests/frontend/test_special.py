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
        special.modified_bessel_k0: x.abs(),
        special.modified_bessel_k1: x.abs() + 0.1,
        special.scaled_modified_bessel_k0: x.abs(),
        special.scaled_modified_bessel_k1: x.abs() + 0.1,
        special.bessel_j0: x,
        special.bessel_j1: x,
        special.bessel_y0: x.abs(),
        special.bessel_y1: x.abs() + 0.1,
        special.spherical_bessel_j0: x,
        special.airy_ai: x,
        special.erfcx: x + 15,
        special.log_ndtr: x,
        special.ndtri: inside.abs(),
        torch.erfinv: inside,
        torch.digamma: x + 0.01,
    }
    graph = check(lambda *values: [one(value) for one, value in zip(inputs, values, strict=True)], *inputs.values())
    for (function, value), actual in zip(inputs.items(), graph.evaluate(*inputs.values()), strict=True):
        torch.testing.assert_close(actual, function(value), rtol=tolerance, atol=tolerance, msg=function.__name__)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 34, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivatives_of_digamma(order: int, dtype: torch.dtype, check) -> None:
    check(lambda x: torch.polygamma(order, x), torch.linspace(0.1, 9, 57, dtype=dtype))


def test_functions_of_two_numbers(check) -> None:
    """One of them may be broadcast, of another element type, or no tensor."""
    x, n = torch.linspace(-2, 2, 21), torch.arange(9)[:, None]
    special = torch.special
    check(
        lambda x, n: (
            special.chebyshev_polynomial_t(x, n),
            special.hermite_polynomial_h(x, 3),
            special.laguerre_polynomial_l(0.5, n),
            special.zeta(n, 1.5),
            special.zeta(2.5, x + 3),
            special.zeta(n, x),
        ),
        x,
        n,
    )
    check(lambda a, x: (special.gammainc(a, x), special.gammaincc(a, x)), n * 1.5, x.abs() * 4)
