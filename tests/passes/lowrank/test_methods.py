"""Methods: a layer of a known rank is recovered, whatever its stride, padding and dilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tersor
from tersor.frontend import to_torch
from tersor.ir import Graph, TersorError
from tersor.ir.ops import Conv2dOp
from tersor.passes import run_passes
from tersor.passes.lowrank import Factorization, find_candidates, register_method
from tersor.passes.lowrank.methods import registry
from tersor.passes.lowrank.methods.registry import METHODS
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.tests.checks import kinds, run_checked
from tersor.tests.passes.lowrank.planted import RANK, conv_graph, linear_graph, planted

GEOMETRIES: tuple[dict[str, Any], ...] = (
    {},
    {"padding": (1, 1, 1, 1)},
    {"stride": (2, 1), "padding": (1, 0, 2, 3)},
    {"dilation": (2, 3), "padding": (2, 3, 2, 3)},
    {"stride": (1, 3), "padding": (0, 2, 1, 0), "dilation": (1, 2)},
)
LENGTHS = {"svd": 2, "spatial": 2, "tucker2": 3}


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("method", METHODS.names())
def test_planted_convolution_is_recovered(method: str, geometry: dict):
    graph = conv_graph(planted(method), **geometry)
    pipeline = f"low-rank{{method={method},ranks=fixed:{RANK}}}"
    small = run_checked(graph, pipeline, fires="low-rank").graph
    assert kinds(small) == ["conv2d"] * LENGTHS[method]
    assert small.cost().macs < graph.cost().macs


@pytest.mark.parametrize("method", METHODS.names())
def test_too_low_a_rank_is_not(method: str):
    graph = conv_graph(planted(method))
    small = run_passes(graph, f"low-rank{{method={method},ranks=fixed:{RANK - 1}}}")
    inputs = seeded_inputs(graph)
    assert deviation(graph.evaluate(*inputs), small.evaluate(*inputs)).exceeds(1e-2)


def test_planted_linear_is_recovered():
    graph = linear_graph(planted("svd", 40, 30)[:, :, 0, 0])
    small = run_checked(graph, f"low-rank{{method=svd,ranks=fixed:{RANK}}}", fires="low-rank").graph
    assert [op.weight.shape for op in small.ops if op.name == "linear"] == [(RANK, 30), (40, RANK)]
    assert [op.bias is None for op in small.ops if op.name == "linear"] == [True, False]


@pytest.mark.parametrize("shape", [(24, 20, 3, 3), (24, 20, 3, 2), (20, 24, 2, 5)])
def test_windows_need_not_be_square(shape: tuple[int, ...]):
    weight = planted("tucker2", shape[0], shape[1], 5)[:, :, : shape[2], : shape[3]]
    run_checked(conv_graph(weight.contiguous()), f"low-rank{{ranks=fixed:{RANK}}}", fires="low-rank")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("method", METHODS.names())
def test_multiply_adds_are_those_of_the_graph(method: str, geometry: dict):
    graph = conv_graph(planted(method), **geometry)
    (candidate,), _ = find_candidates(graph, METHODS.find(method))
    for rank in (2, 5):
        ranks = (rank,) * len(candidate.factors.spectra)
        small = run_passes(graph, f"low-rank{{method={method},ranks=fixed:{rank}}}")
        assert small.cost().macs == candidate.macs_at(ranks)


def test_tucker_improves_on_truncation():
    weight = torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = METHODS.find("tucker2")(weight)
    reduce, core, expand = factors.weights((5, 6))
    found = torch.einsum("or,rsab,si->oiab", expand[..., 0, 0], core, reduce[..., 0, 0])
    left, right = factors._outputs[:, :6], factors._inputs[:, :5]
    truncated = torch.einsum("or,pr,piab,is,js->ojab", left, left, weight, right, right)
    assert (found - weight).norm() < 0.999 * (truncated - weight).norm()


def test_deterministic():
    graph = conv_graph(torch.randn(16, 12, 3, 3, generator=torch.Generator().manual_seed(0)))
    one, two = (run_passes(graph, "low-rank{ranks=energy:0.5}") for _ in range(2))
    assert tersor.ir.fingerprint(one) == tersor.ir.fingerprint(two)


@pytest.mark.parametrize("method", METHODS.names())
def test_is_a_trainable_module(method: str):
    graph = conv_graph(planted(method), padding=(1, 1, 1, 1))
    small = run_passes(graph, f"low-rank{{method={method},ranks=fixed:{RANK}}}")
    module, fresh = to_torch(small), to_torch(small)
    (x,) = seeded_inputs(graph)
    module.train()(x).square().mean().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in module.parameters())
    with torch.no_grad():
        for one in module.parameters():
            one.sub_(0.1 * torch.as_tensor(one.grad))
    fresh.load_state_dict(module.state_dict())
    back = tersor.from_torch(fresh.eval(), (x,))
    (expected,) = back.evaluate(x)
    torch.testing.assert_close(expected, module.eval()(x).detach())
    assert kinds(back) == kinds(small)
    again = run_passes(back, f"low-rank{{method={method},ranks=fixed:1}}")
    assert kinds(again) == kinds(small), "factors must not be factorized again"


def test_next_method_is_one_registration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry.METHODS, "entries", dict(registry.METHODS.entries))

    @register_method("mirror")
    class Mirror(METHODS.find("svd")):  # type: ignore[misc]
        parts = ("one", "two")

    assert issubclass(Mirror, Factorization)
    graph: Graph = linear_graph(planted("svd")[:, :, 0, 0])
    small = run_passes(graph, "low-rank{method=mirror,ranks=fixed:4}")
    assert {"fc.weight.one", "fc.weight.two"} <= set(small.weights)
    with pytest.raises(TersorError, match="registered twice"):
        register_method("mirror")(Mirror)


def test_weights_are_named_after_the_layer():
    small = run_passes(conv_graph(planted("tucker2")), "low-rank{ranks=fixed:4}")
    assert set(small.weights) == {"conv.weight.reduce", "conv.weight.core", "conv.weight.expand", "conv.bias"}
    chain = [op for op in small.ops if isinstance(op, Conv2dOp)]
    assert {(op.rule, op.location) for op in chain} == {("low-rank", "conv")}
