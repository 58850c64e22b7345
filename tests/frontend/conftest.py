"""What the frontend tests share: small modules out of functions, and the comparison with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tersor import ir
from tersor.frontend import from_torch

TOLERANCE = 1e-5  # of the largest output


class Lambda(nn.Module):
    """Calls a function; parameters of layers that the function uses are registered, too."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal shape and element type, and numbers within ``tolerance`` of the largest expected one."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = expected.double().abs().nan_to_num(posinf=0).max().item() if expected.numel() else 0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=tolerance * max(scale, 1e-3), equal_nan=True
    )


def convert_and_compare(model: nn.Module | Callable[..., object], *inputs: torch.Tensor) -> ir.Graph:
    """Convert a model; check the graph, its numbers against PyTorch, and that its text reads back; return it."""
    module = model if isinstance(model, nn.Module) else Lambda(model)
    graph = from_torch(module.eval(), inputs)
    ir.verify(graph)
    with torch.no_grad():
        expected = module(*copy.deepcopy(inputs))
    expected = expected if isinstance(expected, tuple | list) else (expected,)
    actual = graph.evaluate(*inputs)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_same(ours, theirs)
    assert ir.structurally_equal(ir.parse(str(graph), graph.weights), graph)
    return graph


@pytest.fixture
def check() -> Callable[..., ir.Graph]:
    """`convert_and_compare`."""
    return convert_and_compare


@pytest.fixture
def same() -> Callable[..., None]:
    """`assert_same`."""
    return assert_same


@pytest.fixture
def wrap() -> type[Lambda]:
    """`Lambda`: a module that calls a function."""
    return Lambda


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
