"""Reconstruction from calibration data: least squares, the channels that each way chooses, streams, and refusals."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from tersor.frontend import from_torch
from tersor.ir import Graph, TensorType, TersorError, structurally_equal, verify
from tersor.ir.ops import Conv2dOp, LinearOp, ReluOp
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.passes.instruments import VerifyEach
from tersor.passes.numeric import deviation
from tersor.passes.pruning import find_channels, ridge
from tersor.passes.pruning.moments import collect
from tersor.passes.pruning.readers import find_readers
from tersor.passes.pruning.rebuild import Rebuilder
from tersor.passes.pruning.reconstruction import Reading, Selection
from tersor.passes.pruning.reconstruction.registry import RECONSTRUCTIONS
from tersor.passes.pruning.select import stay
from tersor.passes.pruning.shrink import shrunk
from tersor.tests.random_graphs import GraphBuilder

Batches = list[tuple[torch.Tensor, ...]]
WAYS = RECONSTRUCTIONS.names()
CHOOSING = [name for name in WAYS if name != "refit"]


class Blocks(nn.Module):
    """A residual stream, a grouped and a strided convolution, dilation, uneven padding, a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 16, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.down = nn.Conv2d(12, 8, (3, 1), stride=2, padding=(1, 0))
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.grouped(torch.relu(self.wide(x)))
        return self.last(torch.relu(self.down(torch.relu(x))).flatten(1))


def network(batches: int = 40) -> tuple[Graph, Batches]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data: Batches = [(torch.randn(4, 3, 8, 8, generator=generator),) for _ in range(batches)]
    return from_torch(Blocks().eval(), data[0]), data


def error(graph: Graph, small: Graph, data: Batches) -> float:
    pairs = [(graph.evaluate(*one)[0], small.evaluate(*one)[0]) for one in data]
    return math.sqrt(
        sum((a - b).square().sum().item() for a, b in pairs) / sum(a.square().sum().item() for a, _ in pairs)
    )


# Sums of products ---------------------------------------------------------------------------------------------


def test_sums_reproduce_every_layer():
    """With all channels, the least squares solution is the layer itself: so rows of X and Y fit together."""
    graph, data = network()
    readers = find_readers(find_channels(graph))
    found = collect(graph, {}, readers, data, 0)
    assert [op.location for op in found] == ["wide", "grouped", "down", "last"]
    for op, moments in found.items():
        weight = moments.matrix(graph.weights[moments.reader.weight_id or ""])
        assert moments.error(weight, torch.zeros_like(moments.y)) < 1e-5
        torch.testing.assert_close(moments.gram @ weight, moments.cross, rtol=1e-4, atol=1e-2)
        assert moments.batches == len(data) and moments.rows == len(data) * (
            4 if op.location == "last" else 4 * min(64, 64 if op.location != "down" else 16)
        )


def test_batches_stream_in_bounded_memory():
    """No batch is alive when the one after the next is asked for."""
    graph, data = network(12)
    seen: list[weakref.ref[torch.Tensor]] = []

    class Stream:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
            for (batch,) in data:
                assert all(one() is None for one in seen[:-1])
                copy = batch.clone()
                seen.append(weakref.ref(copy))
                yield (copy,)
                del copy

    collect(graph, {}, find_readers(find_channels(graph)), Stream(), 0)
    assert len(seen) == 12


# What it is for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_outputs_stay_closer(way: str):
    """On other inputs than the layers were fitted to; the last one has 120 unknowns, and 160 rows to find them from."""
    graph, data = network(80)
    data, others = data[:40], data[40:]
    manager = PassManager(as_pipeline(f"prune-channels{{macs=0.6,reconstruct={way}}}"), (VerifyEach(),))
    outcome = manager.run(graph, calibration=data)
    plain = run_passes(graph, "prune-channels{macs=0.6}", calibration=data)
    assert outcome.graph.cost().macs == plain.cost().macs
    assert error(graph, outcome.graph, others) < 0.75 * error(graph, plain, others)
    notes = outcome.report.records[0].notes
    assert any(
        re.fullmatch(r"2 layers fitted by least squares: error of their outputs 0\.\d+ -> 0\.\d+ \(median\)", one)
        for one in notes
    )


@pytest.mark.parametrize("way", WAYS)
def test_pruned_equals_zeroed(way: str):
    """What is cut out is the network with new weights, and with zeros in place of what goes."""
    graph, data = network()
    channels = find_channels(graph)
    present = [np.ones(group.size, bool) for group in channels.groups]
    masks = [np.arange(group.size) < group.size // 2 for group in channels.groups]
    rebuilder = Rebuilder(graph, channels, data, RECONSTRUCTIONS.find(way), 0)
    kept = rebuilder.run(masks, present)
    assert [mask.sum() for mask in kept] == [mask.sum() for mask in masks]
    whole = [np.ones(group.size, bool) for group in channels.groups]
    zeros = shrunk(graph, channels, stay(channels, whole), rebuilder.numbers)
    small = shrunk(graph, channels, stay(channels, kept), rebuilder.numbers)
    verify(small)
    for batch in data[:3]:
        assert not deviation(zeros.evaluate(*batch), small.evaluate(*batch)).exceeds(1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_few_rows_make_no_large_weights(way: str):
    """Weights that fit some rows exactly would be multiplied by whatever training changes in front of them."""
    graph, data = network()
    small = run_passes(graph, f"prune-channels{{macs=0.6,reconstruct={way}}}", calibration=data)
    assert small.weights["last.weight..pruned"].norm() < 1.5 * graph.weights["last.weight"].norm()


def test_the_ridge_is_good_for_other_rows():
    """Cross-validation expects about the error that other inputs show, and may lose an error of its own to the best."""
    graph, data = network(80)
    (reader,) = (one for one in find_readers(find_channels(graph)) if one.op.location == "last")
    numbers = {"wide.weight": 0.5 * graph.weights["wide.weight"]}
    found, others = (collect(graph, numbers, [reader], part, 0)[reader.op] for part in (data[:40], data[40:]))
    before = found.matrix(graph.weights["last.weight"])
    errors = {}
    for one in ridge.RIDGES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ridge, "RIDGES", (one,))
            errors[one] = others.error(*ridge.fitted(found, before, torch.arange(before.shape[1]), True))
    chosen = others.error(*ridge.fitted(found, before, torch.arange(before.shape[1]), True))
    assert chosen < 1.1 * min(errors.values()) < 0.9 * errors[min(errors)]


def test_least_squares_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch):
    """The only layer that reads the pruned one, against lstsq on the activations and further rows for the ridge."""
    monkeypatch.setattr(ridge, "RIDGES", (0.1,))
    b = GraphBuilder({"x": TensorType((50, 6))})
    hidden = b.op(ReluOp, b.op(LinearOp, b.graph.inputs[0], b.weight(10, 6, hint="first"), location="first"))
    graph = b.done(b.op(LinearOp, hidden, b.weight(3, 10, hint="last"), b.weight(3, hint="bias"), location="last"))
    generator = torch.Generator().manual_seed(0)
    data: Batches = [(torch.randn(50, 6, generator=generator),) for _ in range(4)]
    small = run_passes(graph, "prune-channels{macs=0.6,reconstruct=refit}", calibration=data)
    x = torch.relu(torch.cat([one[0] for one in data]) @ small.weights["first..pruned"].T).double()
    y = torch.cat([graph.evaluate(*one)[0] for one in data]).double()
    stays = [bool((row == small.weights["first..pruned"]).all(1).any()) for row in graph.weights["first"]]
    before = graph.weights["last"][:, stays].T.double()
    pull = math.sqrt(0.1 * float((x - x.mean(0)).square().sum(0).mean()))
    rows = torch.cat([torch.cat([x, torch.ones(len(x), 1)], 1), torch.eye(len(before), len(before) + 1) * pull])
    wanted = torch.linalg.lstsq(rows, torch.cat([y, before * pull])).solution
    torch.testing.assert_close(small.weights["last..pruned"].T.double(), wanted[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.weights["bias..refit"].double(), wanted[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", CHOOSING)
def test_channels_that_others_repeat_go(way: str):
    """Twins and dead channels: what is left can do everything, and is chosen so."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
    with torch.no_grad():
        assert first.bias is not None
        first.weight[4:8], first.bias[4:8] = 2 * first.weight[:4], 2 * first.bias[:4]
        first.weight[8:], first.bias[8:] = 0.0, -1.0
        last.weight[:, 8:] = 9.0  # dead, whatever their weights
    module = nn.Sequential(first, nn.ReLU(), last).eval()
    data: Batches = [(torch.randn(2, 3, 8, 8),) for _ in range(20)]
    graph = from_torch(module, data[0])
    small = run_passes(graph, f"prune-channels{{ratio=0.66,scope=layer,reconstruct={way}}}", calibration=data)
    assert small.weights["0.weight..pruned"].shape[0] == 5
    assert error(graph, small, data) < 1e-3


def test_greedy_ways_follow_their_formulas():
    """One channel less: the one without which the outputs change least, as they are or after the others are updated."""
    graph, data = network()
    channels = find_channels(graph)
    (reader,) = (one for one in find_readers(channels) if one.op.location == "last")
    moments = collect(graph, {}, [reader], data, 0)[reader.op]
    group = next(one for one in channels.groups if reader.reads(one))
    weight = moments.matrix(graph.weights["last.weight"])
    reading = Reading(moments, weight, reader.kernel_positions(group), np.ones(len(reader.kernels), bool))
    everything = np.ones(group.size, bool)
    task = Selection(group, group.size - 1, everything, everything, [reading])
    as_they_are, updated = [], []
    gram = moments.gram + 0.01 * moments.gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(moments.gram.shape[1])
    for channel in range(group.size):
        rest = moments.unknowns(reading.positions != channel)
        less = weight.clone()
        less[:, reading.unknowns(channel)] = 0
        as_they_are.append(moments.error(less, torch.zeros_like(moments.y)))
        best = torch.linalg.solve(gram[:, rest][:, :, rest], moments.cross[:, rest])
        updated.append(-float((moments.cross[:, rest] * best).sum()))  # the damped error but for a constant
    assert np.flatnonzero(~RECONSTRUCTIONS.find("thinet")(task)) == [int(np.argmin(as_they_are))]
    assert np.flatnonzero(~RECONSTRUCTIONS.find("obs")(task)) == [int(np.argmin(updated))]


def test_obs_as_a_criterion_updates_what_stays():
    graph, data = network()
    alone = run_passes(graph, "prune-channels{macs=0.6,criterion=obs}", calibration=data)
    asked = run_passes(graph, "prune-channels{macs=0.6,criterion=obs,reconstruct=refit}", calibration=data)
    assert structurally_equal(alone, asked)
    plain = run_passes(graph, "prune-channels{macs=0.6}", calibration=data)
    assert error(graph, alone, data) < error(graph, plain, data)


def test_it_is_seeded_and_may_run_again():
    graph, data = network()
    runs = [run_passes(graph, "prune-channels{macs=0.7,reconstruct=lasso}", calibration=data) for _ in range(2)]
    assert structurally_equal(*runs)
    again = run_passes(runs[0], "prune-channels{macs=0.8,reconstruct=lasso}", calibration=data)
    assert again.cost().macs <= 0.8 * runs[0].cost().macs


def test_bisection_leaves_weights_as_they_are():
    graph, data = network()
    options = "prune-channels{macs=0.6,reconstruct=refit}"
    assert structurally_equal(run_passes(graph, options, calibration=data, bisect_limit=0), graph)
    some = run_passes(graph, options, calibration=data, bisect_limit=1)
    assert not any(id.endswith("refit") for id in some.weights)


def test_layers_that_cannot_be_fitted_are_left():
    """A weight that two layers share is cut and stays; all others are fitted."""
    b = GraphBuilder({"x": TensorType((2, 3, 6, 6))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 6, location="start"))
    shared = b.weight(6, 6, 3, 3, hint="shared")
    for _ in range(2):
        x = b.op(ReluOp, b.op(Conv2dOp, x, shared, padding=(1, 1, 1, 1)))
    graph = b.done(b.conv(x, 3, location="end"))
    data: Batches = [(torch.randn(2, 3, 6, 6),) for _ in range(10)]
    small = run_passes(graph, "prune-channels{macs=0.6,reconstruct=obs}", calibration=data)
    kept = small.weights["shared..pruned"]
    assert all(
        any(torch.equal(value, other) for other in graph.weights["shared"].flatten()) for value in kept.flatten()[:5]
    )
    assert small.weights["end.bias..refit"].shape == (3,)


# Bad input ----------------------------------------------------------------------------------------------------


def test_needs_data():
    graph, _ = network()
    with pytest.raises(TersorError, match="needs calibration data: give at least one batch"):
        run_passes(graph, "prune-channels{reconstruct=lasso}")


def test_too_few_samples_say_how_many_it_needs():
    graph, data = network()
    with pytest.raises(TersorError) as caught:
        run_passes(graph, "prune-channels{macs=0.9,reconstruct=refit}", calibration=data[:1])
    found = re.search(
        r"least squares at linear at 'last' has (\d+) unknowns for each output and 4 positions", str(caught.value)
    )
    assert found is not None
    needed = re.search(r"give (\d+) calibration batches of this size or more", str(caught.value))
    assert needed is not None and int(needed[1]) == math.ceil(int(found[1]) / 4)
    run_passes(graph, "prune-channels{macs=0.9,reconstruct=refit}", calibration=data[: int(needed[1])])


def test_numbers_that_are_not_finite_name_the_layer():
    graph, data = network()
    data[3][0][0, 0, 0, 0] = math.inf
    with pytest.raises(TersorError, match="numbers that are not finite at conv2d at 'wide'"):
        run_passes(graph, "prune-channels{reconstruct=thinet}", calibration=data)


def test_unknown_way():
    with pytest.raises(TersorError, match="unknown reconstruction 'laso'; did you mean 'lasso'"):
        as_pipeline("prune-channels{reconstruct=laso}")
