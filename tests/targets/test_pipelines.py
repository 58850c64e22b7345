"""No graph needs a pass of a pipeline to compile: what kernels need is made before and behind every pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional

import tersor
from tersor.frontend import from_torch
from tersor.ir import Graph
from tersor.measuring import PREPARING_PASSES, REQUIRED_PASSES
from tersor.passes import PRESETS, Exactness, list_passes, run_passes
from tersor.passes.registry import OTHER
from tersor.targets.codegen.kernel import CompileError
from tersor.targets.codegen.lowering import lower
from tersor.targets.machines.catalog import resolve_cpu
from tersor.tests.frontend import test_data_movement, test_elementwise, test_layers
from tersor.tests.frontend.conftest import Lambda
from tersor.tests.random_graphs import random_graph

from .compiled import NATIVE
from .wide_graphs import wide_graph

TARGET = resolve_cpu(NATIVE)

# Passes that are exact or close and take no options or data; those of quantization make notes for others, or need
# examples of inputs.
SINGLE = [
    info.name
    for info in list_passes()
    if info.exactness is not Exactness.APPROXIMATE and info.purpose not in ("quantize", OTHER)  # of test suites
]
FUNCTIONS: tuple[tuple[Any, Any], ...] = (
    *((function, ((3, 4, 6),)) for function in test_elementwise.UNARY.values()),
    *((function, ((4, 6), (4, 6))) for function in test_elementwise.BINARY.values()),
    *((function, (test_layers.IMAGE,)) for function in test_layers.FUNCTIONS.values()),
    *((function, ((2, 6, 5, 4),)) for function in test_data_movement.CASES.values()),
)


@cache
def random_ones() -> tuple[Graph, ...]:
    """Random graphs."""
    return (*(random_graph(seed, 12) for seed in range(8)), *(wide_graph(seed, 12) for seed in range(8)))


@cache
def modules() -> tuple[Graph, ...]:
    """The modules of the frontend's tests."""
    layers = [(make(), (test_layers.IMAGE,)) for make in test_layers.IMAGE_LAYERS.values()]
    functions = [(Lambda(function), shapes) for function, shapes in FUNCTIONS]
    return tuple(
        from_torch(module.eval(), tuple(torch.randn(shape) for shape in shapes))
        for module, shapes in (*layers, *functions)
    )


def refusal(graph: Graph, pipeline: str) -> str:
    """Why a graph does not compile with a pipeline; empty if it does."""
    passes = ",".join(text for text in (PREPARING_PASSES, pipeline, REQUIRED_PASSES) if text)
    try:
        lower(run_passes(graph, passes, target=TARGET), TARGET)
    except CompileError as error:
        return str(error)
    return ""


def check_all(graphs: Sequence[Graph], pipeline: str) -> None:
    refused = {refusal(graph, pipeline): graph for graph in graphs}
    assert [reason for reason, graph in refused.items() if reason and not refusal(graph, "O3")] == []


@pytest.mark.parametrize("pipeline", ["", "layout", "fuse"])
def test_random_graphs(pipeline: str):
    check_all(random_ones(), pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["", *PRESETS, *SINGLE])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch says that it costs a copy
def test_every_module_of_the_frontend_tests(pipeline: str):
    check_all((*modules(), *random_ones()), pipeline)


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(1)


def weight_from_constants(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, torch.ones(3, 6, 3, 3)[1:] * 0.5)


def nobody_reads(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.zeros(0)], dim=1)


@pytest.mark.parametrize("pipeline", ["", "layout", "fuse"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(1),
        lambda x: x.log_softmax(1),
        lambda x: x.log_softmax(-1),
        weight_from_constants,
        nobody_reads,
    ],
    ids=["log_softmax", "log_softmax of rows", "softmax", "weight from constants", "nobody reads"],
)
def test_ops_without_a_kernel_of_their_own(function: Callable[[torch.Tensor], torch.Tensor], pipeline: str):
    assert refusal(from_torch(Lambda(function), (torch.randn(1, 6, 5, 4),)), pipeline) == ""


def test_softmax_along_the_channels_at_o0():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    result = tersor.compile(Lambda(softmax), (x,), pipeline="O0")(x)
    torch.testing.assert_close(result, x.softmax(1), rtol=1e-5, atol=1e-6)
