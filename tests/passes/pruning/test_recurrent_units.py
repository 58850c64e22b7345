"""A hidden unit goes with its rows of all gates, as an input of the loop, and with what reads it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import tersor
from tersor.passes import run_passes
from tersor.tests.passes.pruning.zeroing import check_exact

UNITS = 10
GATES: dict[Callable[..., nn.RNNBase], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Reading(nn.Module):
    """A recurrent layer, of which a linear layer reads all steps."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.last = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x)[0])


class Stateful(Reading):
    """The state goes in and out."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, state = self.layer(x, state)
        return self.last(x), state


def imported(model: nn.Module, *inputs: torch.Tensor) -> tersor.ir.Graph:
    torch.manual_seed(0)
    graph = tersor.from_torch(model.eval(), inputs or (torch.randn(2, 6, 5),))
    return run_passes(graph, "dce")  # last states that nobody reads would tie the layers


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("bias", [True, False])
def test_units(kind: Callable[..., nn.RNNBase], bias: bool):
    (group,) = check_exact(imported(Reading(kind(5, UNITS, bias=bias, batch_first=True)))).groups
    assert (group.size, group.width) == (UNITS, GATES[kind])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_layers_and_directions_are_apart(kind: Callable[..., nn.RNNBase]):
    channels = check_exact(imported(Reading(kind(5, UNITS, num_layers=2, bidirectional=True))))
    assert [group.size for group in channels.groups] == [UNITS] * 4


def test_units_of_a_state_that_goes_out_stay():
    channels = check_exact(imported(Stateful(nn.GRU(5, UNITS)), torch.randn(2, 6, 5), torch.zeros(1, 6, UNITS)))
    assert not channels.groups
    assert "must stay" in channels.held[0][1] or "reach output" in channels.held[0][1]


def test_channels_in_front_go_too():
    class Recognizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3, padding=1)
            self.lstm = Reading(nn.LSTM(8 * 6, UNITS, bidirectional=True, batch_first=True))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.conv(x))
            return self.lstm(x.permute(0, 3, 1, 2).flatten(2))

    graph = imported(Recognizer(), torch.randn(1, 1, 6, 7))
    assert sorted(group.size for group in check_exact(graph).groups) == [8, UNITS, UNITS]
    small = run_passes(graph, "prune-channels{macs=0.5}")
    assert small.cost().macs <= 0.5 * graph.cost().macs
    x = torch.randn(1, 1, 6, 7)
    torch.testing.assert_close(small.to_torch()(x), small.evaluate(x)[0])
