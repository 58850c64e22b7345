"""Whole networks: graph against PyTorch, text round trip, and `to_torch` there and back.

Differences are relative to the largest output. All of them are measured, and asserted, with one input.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from tersor import ir
from tersor.frontend import from_torch, to_torch

REPOSITORY = str(Path(__file__).parents[2])


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv2",
        "efficientnet_lite0",
        "minilm",
        pytest.param("vgg16", marks=pytest.mark.slow),  # half a gigabyte of weights
    ],
)
def test_network(name, same, monkeypatch):
    pytest.importorskip("pytorchcv", reason="the benchmark models need `pip install tersor[bench]`")
    monkeypatch.setattr(sys, "path", [REPOSITORY, *sys.path])
    module, inputs = importlib.import_module("benchmarks.models").MODELS[name]()
    with torch.no_grad():
        expected = module(*inputs)

    graph = from_torch(module, inputs)
    ir.verify(graph)
    same(graph.evaluate(*inputs)[0], expected)
    assert ir.structurally_equal(ir.parse(str(graph), graph.weights), graph)
    assert all(op.location for op in graph.ops if op.name in ("conv2d", "linear", "batch_norm"))

    again = to_torch(graph)
    with torch.no_grad():
        same(again(*inputs), expected)
    same(from_torch(again, inputs).evaluate(*inputs)[0], expected)
