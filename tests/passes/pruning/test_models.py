"""Removing channels of real networks is zeroing them; at a low resolution, which changes no coupling."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import tersor
from tersor.passes import run_passes
from tersor.tests.passes.pruning.zeroing import check_exact

NETWORKS = ["resnet50", "mobilenetv2", "densenet121", "shufflenetv2", "googlenet", "efficientnet_lite0"]
RESOLUTION = 64
TIED = {"shufflenetv2": 4}  # layers whose channels one shuffle after another has tied to each other
REPOSITORY = str(Path(__file__).parents[3])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NETWORKS)
def graph(request: pytest.FixtureRequest) -> tersor.ir.Graph:
    pytest.importorskip("pytorchcv", reason="the benchmark models need `pip install tersor[bench]`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [REPOSITORY, *sys.path])
        module, _ = importlib.import_module("benchmarks.models").MODELS[request.param]()
    image = torch.randn(1, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    return tersor.from_torch(module, image)


@pytest.mark.parametrize("share", [0.8, 0.3])
def test_pruning_is_zeroing(graph: tersor.ir.Graph, share: float):
    channels = check_exact(graph, share=share, tolerance=1e-4)
    together = [op for op, reason in channels.held if reason == "they can only go all at once"]
    assert len(channels.held) == 1 + len(together)  # the classifier
    assert len(together) == TIED.get(graph.name, 0)


def test_pruning_a_prepared_graph_is_zeroing(graph: tersor.ir.Graph):
    check_exact(run_passes(graph, "O2,channel-shuffle"), tolerance=1e-4)


def test_half_of_the_multiply_adds(graph: tersor.ir.Graph):
    small = run_passes(graph, "prune-channels{macs=0.5}")
    assert 0.49 < small.cost().macs / graph.cost().macs <= 0.5
