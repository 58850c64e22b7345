"""Rank rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tersor.ir import Graph, TensorType
from tersor.ir.ops import Conv2dOp, ReluOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.base import PassError
from tersor.passes.lowrank import RankRule, Spectrum, register_rank_rule
from tersor.passes.lowrank.ranks import parse_rank_rule, registry
from tersor.passes.lowrank.ranks.registry import RANK_RULES
from tersor.passes.lowrank.ranks.vbmf import _limit, _noise_variance, _tau, vbmf_rank
from tersor.targets import resolve_target
from tersor.tests.checks import refusals
from tersor.tests.passes.lowrank.planted import conv_graph, planted
from tersor.tests.random_graphs import GraphBuilder


def spectrum(matrix: torch.Tensor) -> Spectrum:
    return Spectrum(torch.linalg.svdvals(matrix.double()).numpy(), *matrix.shape)


def noisy(rows: int, columns: int, rank: int, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator).double() for shape in ((rows, rank), (rank, columns))]
    return draw[0] @ draw[1] + noise * torch.randn((rows, columns), generator=generator)


def net() -> Graph:
    """Three convolutions of different extents, the middle one nearly of rank 4."""
    b = GraphBuilder({"x": TensorType((1, 16, 12, 12))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 32, location="first"))
    weight = planted("tucker2", 32, 32) + 0.01 * torch.randn(32, 32, 3, 3, generator=b.generator)
    pad = (1, 1, 1, 1)
    x = b.op(ReluOp, b.op(Conv2dOp, x, b.constant(weight, "middle.weight"), None, location="middle", padding=pad))
    return b.done(b.conv(x, 24, location="last"))


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (64, 64)])
@pytest.mark.parametrize("rank", [1, 5, 17])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_vbmf_finds_the_planted_rank(shape: tuple[int, int], rank: int, noise: float):
    assert vbmf_rank(spectrum(noisy(*shape, rank, noise))) == rank


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_vbmf_does_not_depend_on_scale(scale: float):
    assert vbmf_rank(spectrum(noisy(40, 90, 6, 0.2) * scale)) == 6


def test_vbmf_measures_the_noise():
    squares = spectrum(noisy(100, 300, 5, 0.5)).values ** 2
    assert _noise_variance(squares, 100, 300) == pytest.approx(0.25, rel=0.02)
    for ratio in (0.1, 0.5, 1.0):
        scaled = np.linspace(_limit(ratio), 50, 20)
        tau = _tau(scaled, ratio)
        np.testing.assert_allclose((1 + tau) * (1 + ratio / tau), scaled)
        assert (tau >= np.sqrt(ratio)).all()


def test_vbmf_of_noise_and_of_nothing():
    assert vbmf_rank(spectrum(noisy(50, 120, 1, 1.0) * 0 + noisy(50, 120, 1, 1.0, 1) - noisy(50, 120, 1, 0.0, 1))) == 0
    assert vbmf_rank(spectrum(torch.zeros(5, 9))) == 0
    assert parse_rank_rule("vbmf").rank(spectrum(torch.zeros(5, 9))) == 1
    assert vbmf_rank(spectrum(torch.ones(1, 9))) in (0, 1)


def test_energy():
    values = Spectrum(np.sqrt([5.0, 3.0, 1.5, 0.5]), 4, 7)
    for share, rank in ((0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.9, 3), (0.999, 4)):
        assert parse_rank_rule(f"energy:{share}").rank(values) == rank
    assert parse_rank_rule("energy:0.9").rank(Spectrum(np.zeros(4), 4, 7)) == 1


@pytest.mark.parametrize("method", ["tucker2", "spatial"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_macs_reaches_the_ratio(method: str, ratio: float):
    graph = net()
    small = run_passes(graph, f"low-rank{{method={method},ranks=macs:{ratio}}}")
    assert ratio - 0.05 < small.cost().macs / graph.cost().macs <= ratio


def test_macs_takes_from_the_layer_that_needs_least():
    small = run_passes(net(), "low-rank{ranks=macs:0.6}")
    assert {"first.weight", "middle.weight.core", "last.weight"} <= set(small.weights)


def test_macs_counts_layers_that_stay():
    with pytest.raises(PassError, match=r"macs:0\.005 cannot be reached: 0\.\d+ of the multiply-adds remain"):
        run_passes(net(), "low-rank{ranks=macs:0.005}")
    with pytest.raises(PassError, match=r"a multiple of 16"):
        run_passes(net(), "low-rank{ranks=macs:0.2,multiple=16}")


@pytest.mark.parametrize(("options", "target"), [("", resolve_target("x86:avx2")), (",multiple=8", None)])
@pytest.mark.parametrize("rule", ["vbmf", "energy:0.6", "macs:0.5", "fixed:3"])
def test_ranks_fill_vectors(rule: str, options: str, target: Any):
    outcome = PassManager(as_pipeline(f"low-rank{{ranks={rule}{options}}}")).run(net(), target=target)
    cores = [tensor.shape[:2] for id, tensor in outcome.graph.weights.items() if id.endswith(".core")]
    assert cores
    assert all(extent % 8 == 0 for shape in cores for extent in shape)


def test_full_rank_is_refused():
    graph = conv_graph(torch.randn(12, 12, 3, 3, generator=torch.Generator().manual_seed(0)))
    outcome = PassManager(as_pipeline("low-rank{ranks=fixed:100}")).run(graph)
    assert not outcome.report.records[0].changed
    assert refusals(outcome) == [
        "low-rank refused conv2d at 'conv': at rank 12x12 it needs 209952 multiply-adds instead of 163296"
    ]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ("energy", "rank rule energy needs a number: energy:SHARE"),
        ("energy:", "rank rule energy needs a number: energy:SHARE"),
        ("energy:1", "the share of energy to keep is above 0 and below 1, not 1"),
        ("energy:0", "the share of energy to keep is above 0 and below 1, not 0"),
        ("energy:nan", "the share of energy to keep is above 0 and below 1, not nan"),
        ("energy:much", "ranks=energy:much: expected a number, got 'much'"),
        ("macs:2", "the ratio of multiply-adds to leave is above 0 and below 1, not 2"),
        ("fixed:0", "a rank is 1 or more, not 0"),
        ("fixed:-3", "a rank is 1 or more, not -3"),
        ("fixed:1.5", "ranks=fixed:1.5: expected an integer, got '1.5'"),
        ("vbmf:3", "rank rule vbmf takes no number, got 'vbmf:3'"),
        ("energi:0.9", "unknown rank rule 'energi:0.9'; did you mean 'energy:SHARE'?"),
        ("8", "unknown rank rule '8'; known: energy"),
    ],
)
def test_mistakes(ranks: str, message: str):
    with pytest.raises(PipelineError) as error:
        parse_pipeline(f"low-rank{{ranks={ranks}}}")
    assert message in str(error.value)


def test_next_rule_is_one_registration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry.RANK_RULES, "entries", dict(registry.RANK_RULES.entries))

    @register_rank_rule("half")
    @dataclass(frozen=True)
    class Half(RankRule):
        def rank(self, spectrum: Spectrum) -> int:
            return spectrum.full // 2

    assert "half" in RANK_RULES.names()
    small = run_passes(conv_graph(planted("tucker2", 24, 20)), "low-rank{ranks=half}")
    assert small.weights["conv.weight.core"].shape[:2] == (12, 10)
