"""Whole networks as graphs and as machine code: PyTorch's numbers, text, any pipeline, any number of threads."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor import ir
from tersor.frontend import from_torch, to_torch
from tersor.passes import PRESETS
from tersor.targets import Executable
from tersor.targets.machines.catalog import resolve_cpu

REPOSITORY = str(Path(__file__).parents[2])
TOLERANCE = 1e-4  # of the largest output, against PyTorch
GRAPH_TOLERANCE = 1e-5  # the same, of the interpreter and of the module that a graph becomes

Example = tuple[nn.Module, tuple[torch.Tensor, ...]]


# Takes the place of the fixture that lets LLVM optimize less: the code is what users get.
as_users_get_it = pytest.mark.parametrize("llvm_level", ["as users get it"])


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Example:
    pytest.importorskip("pytorchcv", reason="the benchmark models need `pip install tersor[bench]`")
    monkeypatch.setattr(sys, "path", [REPOSITORY, *sys.path])
    return importlib.import_module("benchmarks.models").MODELS[name]()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    difference, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert difference <= tolerance * scale, f"differs by {difference / scale:.2g} of its scale"


def assert_threads_agree(executable: Executable, inputs: tuple[torch.Tensor, ...]) -> None:
    """However the work is shared, each number is computed in the same order."""
    results = []
    for threads in (1, 2):
        executable.threads = threads
        results.append(executable(*inputs))
    assert torch.equal(*results)


@as_users_get_it
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv2",
        "minilm",
        pytest.param("efficientnet_lite0", marks=pytest.mark.slow),  # the same layers as MobileNetV2's
        pytest.param("vgg16", marks=pytest.mark.slow),  # half a gigabyte of weights
    ],
)
def test_network(name: str, monkeypatch: pytest.MonkeyPatch):
    """As a graph, as text, as a module again, and compiled: always PyTorch's numbers."""
    module, inputs = load(name, monkeypatch)
    with torch.no_grad():
        expected = module(*inputs)
    graph = from_torch(module, inputs)
    ir.verify(graph)
    assert_close(graph.evaluate(*inputs)[0], expected, GRAPH_TOLERANCE)
    assert ir.structurally_equal(ir.parse(str(graph), graph.weights), graph)
    assert all(op.location for op in graph.ops if op.name in ("conv2d", "linear", "batch_norm"))

    again = to_torch(graph)
    with torch.no_grad():
        assert_close(again(*inputs), expected, GRAPH_TOLERANCE)
    assert_close(from_torch(again, inputs).evaluate(*inputs)[0], expected, GRAPH_TOLERANCE)

    executable = tersor.compile(graph)
    assert_close(executable(*inputs), expected)
    assert_threads_agree(executable, inputs)
    optimized = executable.graph
    ir.verify(optimized)
    assert ir.structurally_equal(ir.parse(str(optimized), optimized.weights), optimized)
    assert {op.name for op in optimized.ops}.isdisjoint({"batch_norm"})


class Small(nn.Module):
    """Most kinds of layers on a picture of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.BatchNorm2d(24), nn.SiLU())
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 24, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.norm = nn.LayerNorm(24)
        self.attention = nn.Linear(24, 72)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.pool(x + self.project(y))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        query, key, value = self.attention(tokens).unflatten(2, (3, 4, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + mixed.transpose(1, 2).flatten(2)
        return torch.softmax(self.head(tokens.mean(1)), -1)


@pytest.fixture(scope="module")
def small() -> Example:
    torch.manual_seed(0)
    return Small().eval(), (torch.randn(2, 3, 16, 16),)


@pytest.mark.parametrize("pipeline", ["", *PRESETS])
def test_every_preset_compiles_to_the_same_numbers(pipeline: str, small: Example):
    module, inputs = small
    executable = tersor.compile(module, inputs, pipeline=pipeline)
    with torch.inference_mode():
        assert_close(executable(*inputs), module(*inputs), 1e-5)
    assert_threads_agree(executable, inputs)


@as_users_get_it
@pytest.mark.parametrize("target", ["x86:avx2", "x86:skylake-avx512"])
def test_code_for_older_processors(target: str, small: Example):
    module, inputs = small
    executable = tersor.compile(module, inputs, target=target)  # code is generated on any machine
    record = executable.info.target
    assert record.name == target
    missing = set(resolve_cpu(record).features) - tersor.targets.machines.catalog.host_features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    with torch.inference_mode():
        assert_close(executable(*inputs), module(*inputs), 1e-5)


@pytest.mark.slow
@as_users_get_it
def test_o0_compiles_a_whole_network(monkeypatch: pytest.MonkeyPatch):
    module, inputs = load("resnet18", monkeypatch)
    executable = tersor.compile(module, inputs, pipeline="O0")
    with torch.inference_mode():
        assert_close(executable(*inputs), module(*inputs))
