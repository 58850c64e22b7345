"""Converters of running totals, sorting and search, against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

import tersor
from tersor.ir import TersorError

from .conftest import Lambda


def distinct(*shape: int) -> torch.Tensor:
    """Numbers in no order, no two of them equal, so that PyTorch's places are the only right ones."""
    count = math.prod(shape)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).reshape(shape) / 4 - count / 8


def everything(x):
    along = [x.cumsum(0), x.cumprod(-1), x.logcumsumexp(1), *x.cummax(1), *x.cummin(0)]
    sums = [x.int().cumsum(1), (x > 0).cumsum(0), x.int().prod(), x.prod(1)]
    order = [*x.sort(1, descending=True), *x.sort(0), x.argsort(-1), *x.topk(3, 1), *x.topk(2, 0, largest=False)]
    places = [*x.kthvalue(3, 1), *x.median(1), x.median(), *x.nanmedian(0, keepdim=True), x.nanmedian()]
    rest = [x.quantile(0.3, 1), x.argmax(), x.argmin(0, keepdim=True), *x.max(1), *x.min(0, keepdim=True), x.msort()]
    scalar = x[0, 0]
    return *along, *sums, *order, *places, *rest, scalar.cumsum(0), *scalar.sort(0), *scalar.median(0), scalar.argmax()


def test_order(check):
    check(everything, distinct(5, 7))


def test_order_compiled():
    x = distinct(5, 7)
    for actual, expected in zip(tersor.compile(Lambda(everything), (x,))(x), everything(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_most_frequent_elements(check):
    x = torch.tensor([[3.0, 1.0, 3.0, 2.0, 1.0], [4.0, -0.0, 5.0, 0.0, 7.0], [6.0, 2.0, 5.0, 9.0, 8.0]])
    check(lambda x: (*x.mode(), *x.mode(0, keepdim=True), *x[0, 0].mode(), *x[:2].int().mode(1)), x)


def test_mantissas_and_powers_of_two(check):
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    powers = torch.exp2(torch.arange(-149.0, 128))
    x = torch.cat([special, powers, -powers, powers * 0.99999994, powers * 1.0000001])
    check(torch.frexp, x)
    check(torch.frexp, x.double() ** 2)
    y = torch.tensor([1.0, 2.0**-149, -(2.0**127)])
    for actual, expected in zip(tersor.compile(Lambda(torch.frexp), (y,))(y), torch.frexp(y), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("size", [0, 3, 40])
def test_places_of_what_is_not_zero(size: int, check):
    x = distinct(5, 7).clamp(min=0) * torch.tensor([1.0, 0, 1, 1, 0, 1, math.nan])
    check(lambda x: (torch.nonzero_static(x, size=size), torch.nonzero_static(x[0] > 0, size=size, fill_value=9)), x)


def test_medians_of_rows_with_nan(check):
    x = distinct(4, 6)
    x[1, 2] = x[1, 4] = x[2, 5] = math.nan
    x[3] = math.nan
    check(lambda x: (x.median(1).values, *x[:3].median(1), x.nanmedian(1).values, x.median(), x.nanmedian()), x)


def test_search(check):
    boundaries, x = distinct(9).sort().values, distinct(3, 4)
    rows = distinct(3, 9).sort(1).values

    def model(x, rows, boundaries):
        both = [torch.searchsorted(rows, x, right=right) for right in (False, True)]
        one = torch.bucketize(x, boundaries, right=True, out_int32=True)
        return *both, one, torch.searchsorted(boundaries, 0.25, side="right")

    check(model, x, rows, boundaries)


def test_no_elements_cannot_be_wanted():
    with pytest.raises(TersorError, match=r"topk.*no elements are wanted"):
        tersor.from_torch(Lambda(lambda x: x.topk(0, 1).values.sum()), (distinct(2, 3),))
