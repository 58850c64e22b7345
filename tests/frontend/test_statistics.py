"""Statistics of what a call is given: those that normalisations return or use, variances, histograms, bags of rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor

from .conftest import Lambda, assert_same

pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom")
X = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([2, 0, 3, 3, 1, 2, 0])


def normalized(x, ids):
    gamma, beta = torch.arange(6.0), torch.arange(6.0) - 3
    layer = [*torch.native_layer_norm(x, (6, 5), None, None, 1e-3), F.layer_norm(x, (5,))]
    group = torch.native_group_norm(x, gamma, beta, 4, 6, 5, 3, 1e-3)
    batch = [F.batch_norm(x, None, None, gamma, beta, training=True), F.instance_norm(x)]
    legit = torch.ops.aten._native_batch_norm_legit_functional(x, gamma, beta, beta, gamma, True, 0.3, 1e-3)
    return *layer, *group, *batch, *legit, x.sum().softmax(0)


def collected(x, ids):
    table, offsets = x[:, 0], torch.tensor([0, 3, 3, 5])
    bags = [F.embedding_bag(ids, table, offsets, mode=mode, padding_idx=3) for mode in ("sum", "mean", "max")]
    weighted = F.embedding_bag(ids[:6].view(2, 3), table, per_sample_weights=x[0, :2, :3].contiguous(), mode="sum")
    last = F.embedding_bag(ids, table, torch.cat([offsets, torch.tensor([7])]), include_last_offset=True)
    counts = x.histc(7), x.histc(4, -1, 0.5), x[0, 0, :1].histc(3)
    return *bags, weighted, last, *counts, torch.addmm(table[:, :4] * math.nan, table, x[0, :5, :4], beta=0)


def counted(x, ids):
    points, weight, edges = x[0, :, :2], x[0, :, 3].abs(), torch.tensor([-1.0, -0.25, 0.5, 1.0])
    one = [*x.histogram(5), *x.histogram(4, range=(-1.0, 1.5), density=True), *x.histogram(edges, weight=x.abs())]
    two = torch.histogramdd(points, [3, 2], weight=weight, density=True)
    given = torch.histogramdd(points, [edges, edges * 2])
    rows, lengths = x[:, 0], torch.tensor([2, 0, 1, 1])
    kinds = ("sum", "mean", "max", "min", "prod")
    runs = [torch.segment_reduce(rows, kind, lengths=lengths) for kind in kinds]
    runs += [torch.segment_reduce(rows, kind, offsets=torch.tensor([0, 1, 4]), initial=0.5) for kind in kinds]
    equal = torch.full_like(x[0, 0], 2.0).histogram(3)
    return *one, two[0], *two[1], given[0], *given[1], *runs, *equal


def undefined(x, ids):
    return x[:, :, :1].var(2), x[:, :, :2].var(2, correction=2)


def test_statistics(check):
    for function in (normalized, collected, counted, undefined):
        check(function, X, IDS)


def test_statistics_compiled():
    def everything(x, ids):
        return *normalized(x, ids), *collected(x, ids), *counted(x, ids), *undefined(x, ids)

    for actual, expected in zip(tersor.compile(Lambda(everything), (X, IDS))(X, IDS), everything(X, IDS), strict=True):
        assert_same(actual, expected)


class Updating(nn.Module):
    """Normalises by the batch, whatever its mode, and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        return self.norm(F.batch_norm(x, mean, variance, training=True, momentum=0.3))


def test_running_statistics_that_a_call_updates_are_state():
    model, reference = Updating().eval(), Updating().eval()
    program = tersor.compile(model, (X,))
    for x in (X, X * 2 + 1):
        assert_same(program(x), reference(x))
    assert set(program.state) == {"mean", "variance"}
    for name, value in program.state.items():
        assert_same(value, reference.get_buffer(name))
