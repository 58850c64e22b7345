"""Converters of operators that write where integers or masks say, against PyTorch."""

from __future__ import annotations

import pytest
import torch

import tersor

from .conftest import Lambda, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.*(in beta|deprecated)")
REDUCTIONS = ("sum", "prod", "amax", "amin", "mean")


def numbers(*shape: int) -> torch.Tensor:
    """Small integers as float32, so that sums in any order are equal."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-4, 5, shape, generator=generator).float()


def reductions(x, i, new):
    results = []
    for reduce in REDUCTIONS:
        results += [x.scatter_reduce(1, i, new, reduce, include_self=own) for own in (True, False)]
    for reduce in REDUCTIONS[1:]:
        results += [x.index_reduce(1, i[0, :3], new[:, :3], reduce, include_self=own) for own in (True, False)]
    halves = [x.to(dtype).scatter_add(0, i % 4, new.to(dtype)) for dtype in (torch.float16, torch.bfloat16)]
    integers = [x.long().scatter_reduce(1, i, new.long(), reduce, include_self=False) for reduce in REDUCTIONS]
    booleans = [
        (x > 0).int().bool().scatter_reduce(1, i, new > 0, reduce) for reduce in ("amax", "amin", "prod", "sum")
    ]
    scatters = [x.scatter(1, i, new, reduce=reduce) for reduce in ("add", "multiply")]
    numbers = [x.scatter(1, i, 3.0, reduce="multiply"), x.scatter(0, i % 4, 2.0, reduce="add")]
    return *results, *halves, *integers, *booleans, *scatters, *numbers


def extrema_of_nan(x, i, new):
    return x.scatter_reduce(1, i, new / new, "amax"), x.scatter_reduce(1, i, new / new, "amin", include_self=False)


def places(x, i, new):
    put = [
        x.put(i - 6, new),
        x.put(i, new, accumulate=True),
        (x > 0).index_put((i[0] % 4,), new[0, :1] > 0, accumulate=True),
    ]
    picked = [x.take(i - 6), torch.take_along_dim(x, i % 6, 1), x.gather(0, i % 4)]
    return *put, *picked, x.resize(8, 3), x[0].gather(0, i[0]), x[0].scatter(0, i[1], new[1])


def one_value_for_each_chosen_element(x, values):
    y, z, rows, columns = x * 1, x * 1, x * 1, x.view(2, 2, 6) * 1
    positive = x > 0
    y[positive] = values[:10]
    z.index_put_((positive,), values[:10], accumulate=True)
    rows[x[:, 4] > 0] = values[:18].view(3, 6)
    columns[:, x.view(2, 2, 6)[0] > 0] = values[:12].view(2, 6)
    filled = x.masked_scatter(positive[0], values) + x[0].masked_scatter(positive, values)
    return y, z, rows, columns, filled, (x > 1).masked_scatter(positive, values > 0)


X, INDEX, NEW = numbers(4, 6), (numbers(4, 5).long() + 4) % 6, numbers(4, 5) + 0.5
CASES = {
    reductions: (X, INDEX, NEW),
    extrema_of_nan: (X, INDEX, numbers(4, 5)),
    places: (X, INDEX, NEW),
    one_value_for_each_chosen_element: (X, numbers(24)),
}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_scattering(function, check):
    check(function, *CASES[function])


def test_scattering_compiled():
    def everything(x, i, new, values):
        return (
            *reductions(x, i, new),
            *places(x, i, new),
            *one_value_for_each_chosen_element(x, values),
            *extrema_of_nan(x, i, new),
        )

    inputs = (X, INDEX, NEW, numbers(24))
    for actual, expected in zip(tersor.compile(Lambda(everything), inputs)(*inputs), everything(*inputs), strict=True):
        assert_same(actual, expected)
