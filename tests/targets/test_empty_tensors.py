"""Inputs and outputs without elements: compiled, called, saved, and run from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.ir import parse
from tersor.targets.codegen.kernel import CompileError


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(8, 3)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(self.layer, *inputs)


CASES: dict[str, tuple[Callable[..., object], list[tuple[int, ...]]]] = {
    "no samples": (lambda layer, x: layer(x).relu().softmax(1), [(0, 8)]),
    "no features": (lambda layer, x: (x * 2, x.sum(1), x.T), [(2, 0)]),
    "nothing before something": (lambda layer, past, x: layer(torch.cat([past, x])), [(0, 8), (3, 8)]),
    "an output of nothing": (lambda layer, x: (x[1:1], layer(x), x[:, 8:].flatten()), [(2, 8)]),
    "the input itself": (lambda layer, x, y: (x, layer(y)), [(0, 2), (2, 8)]),
    "the same twice": (lambda layer, x, y: (x + 1, x + 1, x * 2, layer(y)), [(0, 2), (2, 8)]),
    "products over nothing": (lambda layer, x: (x @ x.T + 1, x.T @ x), [(2, 0)]),
    "integers and booleans": (lambda layer, x: (x.long(), x > 0, x.bool().any(), x.argsort(1)), [(0, 4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_programs_agree_with_the_model(name: str, tmp_path: Path) -> None:
    function, shapes = CASES[name]
    module = Function(function).eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected = module(*inputs)
    executable = tersor.compile(module, inputs)
    for program in (executable, tersor.load(executable.save(tmp_path / "net.tersor"))):
        torch.testing.assert_close(program(*inputs), expected)
    arrays = executable(*(x.numpy() for x in inputs))
    assert all(isinstance(one, np.ndarray) for one in (arrays if isinstance(arrays, tuple) else (arrays,)))
    assert executable.benchmark(*inputs, repeat=1, warmup=0, min_seconds=0, kernels=True).runs == 1


def test_a_wrong_shape_is_told() -> None:
    executable = tersor.compile(Function(lambda layer, x: layer(x)).eval(), torch.randn(0, 8))
    with pytest.raises(tersor.TersorError, match=r"input .* must have shape \[0, 8\], got \[1, 8\]"):
        executable(torch.randn(1, 8))


def test_what_reads_nothing_beside_something_is_refused() -> None:
    graph = parse(
        """graph @net(%q: f32[1,2,4,8], %k: f32[1,2,0,8], %v: f32[1,2,0,8]) {
          %0 = attention(%q, %k, %v) {scale=1.0} : f32[1,2,4,8]
          return %0
        }"""
    )
    with pytest.raises(CompileError, match=r"attention reads f32\[1,2,0,8\], which has no elements"):
        tersor.compile(graph, check=False)
