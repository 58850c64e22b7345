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
