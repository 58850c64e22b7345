"""The facade: what it checks before it compiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.ir import TensorType, TersorWarning, parse
from tersor.tests.random_graphs import GraphBuilder


def test_graph_without_its_weights_is_refused():
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    graph = parse(str(b.done(b.conv(b.graph.inputs[0], 4))))
    with pytest.raises(TersorError, match="the graph's weights are not loaded"):
        tersor.compile(graph)


def test_batch_norm_with_nan_compiles():
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
    module[1].weight.data[2] = float("nan")
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(TersorWarning, match="contains NaN"):
        executable = tersor.compile(module, x)
    expected = module(x).detach()
    torch.testing.assert_close(executable(x), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert bool(expected.isnan().any())


def test_program_keeps_its_numbers_when_the_module_is_trained():
    module = nn.Linear(5, 3)
    x = torch.ones(2, 5)
    executable = tersor.compile(module, x)
    expected = module(x).detach()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(7)
    torch.testing.assert_close(executable(x), expected)


@pytest.mark.parametrize("numbers", [(1.0, 0.1), (-7.0, 2.0), (0.3, 0.1)])
def test_floor_division(numbers):
    class Divide(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x // y, x // 0.1

    x, y = (torch.full((20,), number) for number in numbers)
    executable = tersor.compile(Divide(), (x, y))
    assert all(map(torch.equal, executable(x, y), Divide()(x, y)))
