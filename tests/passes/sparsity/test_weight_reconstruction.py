"""``prune-weights{reconstruct=…}``: least squares and Optimal Brain Compression, on calibration data."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

import tersor
from tersor.ir import Graph, TensorType, structurally_equal
from tersor.ir.blocks import filled_blocks
from tersor.ir.ops import Conv2dOp, LayerOp, LinearOp, ReluOp
from tersor.passes import PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline
from tersor.passes.sparsity import refit
from tersor.passes.sparsity.patterns import parse_pattern
from tersor.passes.sparsity.reconstruction import WeightFit, obc
from tersor.passes.sparsity.reconstruction.obc import obc as choose
from tersor.tests.checks import record_of, refusals
from tersor.tests.random_graphs import GraphBuilder


def correlated(rows: int, terms: int, seed: int = 0) -> torch.Tensor:
    """Rows whose terms depend on each other, so that some can stand in for others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(terms // 2 + 1, terms, generator=generator)
    return torch.randn(rows, terms // 2 + 1, generator=generator) @ mixing + 0.3 * torch.randn(
        rows, terms, generator=generator
    )


def net() -> Graph:
    b = GraphBuilder({"x": TensorType((4, 8, 6, 6))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 16, location="first"))
    x = b.op(ReluOp, b.conv(x, 16, groups=4, location="grouped"))
    return b.done(b.conv(x, 32, 1, location="last"))


def batches(count: int = 6) -> list[torch.Tensor]:
    return [correlated(4 * 36, 8, seed).reshape(4, 6, 6, 8).permute(0, 3, 1, 2).contiguous() for seed in range(count)]


def run(options: str, graph: Graph | None = None, **given) -> PassOutcome:
    given.setdefault("calibration", batches())
    return PassManager(as_pipeline(f"prune-weights{{{options}}}")).run(graph or net(), **given)


def error(graph: Graph, original: Graph | None = None) -> float:
    """On data that was not calibrated with."""
    original = original or net()
    noise = signal = 0.0
    for batch in batches(9)[6:]:
        (expected,), (found,) = original.evaluate(batch), graph.evaluate(batch)
        noise += float((expected - found).square().sum())
        signal += float(expected.square().sum())
    return (noise / signal) ** 0.5


def weights(graph: Graph) -> dict[str, torch.Tensor]:
    return {op.location: graph.weights[op.weight.op.attrs.id] for op in graph.ops if isinstance(op, LayerOp)}


@pytest.mark.parametrize(
    "options", ["ratio=0.6,scope=layer", "pattern=nm:2:4", "pattern=block:4x16,ratio=0.5,scope=layer"]
)
def test_fitting_loses_less_and_choosing_less_still(options: str):
    errors = [error(run(f"{options}{more}").graph) for more in ("", ",reconstruct=refit", ",reconstruct=obc")]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 1.02 * errors[1]


def test_patterns_hold():
    found = weights(run("pattern=nm:2:4,reconstruct=obc").graph)
    last = found["last"].reshape(32, 4, 4)
    assert ((last != 0).sum(2) == 2).all()
    grouped = found["grouped"]  # four inputs at each of nine taps
    assert ((grouped != 0).sum(1) == 2).all()
    graph = run("pattern=block:4x16,ratio=0.5,scope=layer,reconstruct=obc").graph
    (last,) = (op for op in graph.ops if isinstance(op, LayerOp) and op.location == "last")
    assert last.attrs.blocks == (4, 16, 4)
    assert int(filled_blocks(weights(graph)["last"].flatten(1), 4, 16).sum()) == 4
    single = run("ratio=0.6,scope=layer,reconstruct=obc").graph
    for tensor in weights(single).values():
        assert int((tensor == 0).sum()) == int(0.6 * tensor.numel())


def test_fitted_weights_are_the_best_for_their_zeros():
    b = GraphBuilder({"x": TensorType((64, 12))})
    graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.weight(5, 12), location="fc"))
    data = [correlated(64, 12, seed) for seed in range(4)]
    outcome = run("ratio=0.5,reconstruct=refit", graph, calibration=data)
    (found,) = weights(outcome.graph).values()
    rows, before = torch.cat(data).double(), graph.weights["w"].double()
    for output in range(5):
        kept = found[output].nonzero()[:, 0]
        best = torch.linalg.lstsq(rows[:, kept], rows @ before[output, :, None]).solution[:, 0]
        assert (rows[:, kept] @ found[output, kept].double() - rows[:, kept] @ best).norm() < 0.03 * (
            rows @ before[output]
        ).norm()


def test_one_weight_goes_where_it_costs_least():
    """Against all ways to take one away; greedily, the second is the best of those that are left."""
    rows = correlated(200, 6).double()
    hessian = (rows.T @ rows / 200)[None] + 1e-6 * torch.eye(6)
    weight = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(3)).double()

    def loss(kept: tuple[int, ...]) -> float:
        at = torch.tensor(kept)
        best = torch.linalg.solve(hessian[0][at][:, at], (hessian[0] @ weight[0, 0])[at])
        found = torch.zeros(6, dtype=torch.float64)
        found[at] = best
        return float((found - weight[0, 0]) @ hessian[0] @ (found - weight[0, 0]))

    everything = torch.ones(1, 1, 6, dtype=torch.bool)
    pattern, last = parse_pattern("single"), tuple(range(6))
    for gone in (1, 2, 3):
        mask = choose(WeightFit(weight, hessian, everything, pattern, torch.Size((1, 6)), gone))
        kept = tuple(mask[0, 0].nonzero()[:, 0].tolist())
        assert kept == min(itertools.combinations(last, 6 - gone), key=loss)
        last = kept


def test_outputs_lose_what_costs_least_in_all():
    hessian = torch.eye(4, dtype=torch.float64)[None]
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 5.0]]], dtype=torch.float64)
    task = WeightFit(weight, hessian, weight > 0, parse_pattern("single"), torch.Size((2, 4)), 4)
    assert choose(task)[0].tolist() == [[False, True, True, True], [False, False, False, True]]


def test_what_is_too_large_is_left_to_the_criterion(monkeypatch):
    fitted = run("ratio=0.6,reconstruct=refit").graph
    monkeypatch.setattr(obc, "MOST_WORK", 0)
    assert structurally_equal(run("ratio=0.6,reconstruct=obc").graph, fitted)
    monkeypatch.setattr(refit, "_MOST_TERMS", 40)
    outcome = run("ratio=0.6,reconstruct=obc")
    assert refusals(outcome) == [
        "prune-weights refused conv2d at 'first': each output has 72 weights, more than 40, too many to fit"
    ]
    zeroed = weights(run("ratio=0.6").graph)["first"]
    assert torch.equal(weights(outcome.graph)["first"], zeroed)


def test_running_it_again_changes_nothing():
    once = run("ratio=0.6,reconstruct=obc").graph
    again = run("ratio=0.6,reconstruct=obc", once)
    assert not record_of(again, "prune-weights").changed and structurally_equal(again.graph, once)


def test_the_report_and_the_data():
    notes = record_of(run("ratio=0.6,reconstruct=obc"), "prune-weights").notes
    found = re.fullmatch(r"3 weights fitted: error of their layers' outputs (\S+) -> (\S+) \(median\)", notes[0])
    assert found and float(found[2]) < float(found[1])
    with pytest.raises(tersor.TersorError, match="needs calibration data"):
        run("reconstruct=refit", calibration=None)
    with pytest.raises(PipelineError, match="unknown reconstruction 'obs'; did you mean 'obc'"):
        parse_pipeline("prune-weights{reconstruct=obs}")


def test_layers_that_share_a_weight_are_fitted_together():
    b = GraphBuilder({"x": TensorType((64, 12))})
    weight = b.weight(12, 12)
    x = b.op(LinearOp, b.graph.inputs[0], weight, location="one")
    graph = b.done(b.op(LinearOp, b.op(ReluOp, x), weight, location="two"))
    outcome = run("ratio=0.5,reconstruct=obc", graph, calibration=[correlated(64, 12, seed) for seed in range(4)])
    one, two = (op for op in outcome.graph.ops if isinstance(op, LinearOp))
    assert one.weight is two.weight
    assert not isinstance(one, Conv2dOp)
