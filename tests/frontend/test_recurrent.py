"""Recurrent layers against PyTorch: converted, by the interpreter, and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import tersor
from tersor import TersorError, from_torch
from tersor.ir.ops import RecurrentOp

from .conftest import Lambda, assert_same

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
    "batch first, no biases": {"batch_first": True, "bias": False},
    "units that fill vectors": {"hidden_size": 32, "input_size": 16},
    "units over several blocks": {"hidden_size": 77},
}


class Several(nn.Module):
    """Layers on one input; a state is given to every other one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        named = [{"input_size": 6, "hidden_size": 7} | options for options in OPTIONS.values()]
        named += [{"input_size": 6, "hidden_size": 5, "nonlinearity": "relu"}] if kind == "rnn" else []
        self.layers = nn.ModuleList(KINDS[kind](**options) for options in named)

    def forward(self, x: torch.Tensor) -> list[Any]:
        results = []
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            own = x if layer.input_size == 6 else torch.cat([x, x, x], -1)[..., :16]
            state: Any = None
            if index % 2:
                directions = layer.num_layers * (1 + layer.bidirectional)
                batch = own.shape[0 if layer.batch_first else 1]
                state = own.new_full((directions, batch, layer.hidden_size), 0.25)
                state = (state, -state) if isinstance(layer, nn.LSTM) else state
            output, last = layer(own, state)
            results.append((output, last))
        return results


@pytest.mark.parametrize(("kind", "shape"), [*((kind, (5, 3, 6)) for kind in KINDS), ("lstm", (1, 1, 6))])
def test_layers(kind: str, shape: tuple[int, ...]):
    module, x = Several(kind).eval(), torch.randn(shape)
    expected = tree_leaves(module(x))
    graph = from_torch(module, (x,))
    program = tersor.compile(graph, pipeline="O3", check=False)
    for actual in (graph.evaluate(x), tree_leaves(program(x))):
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)
    assert_same(tree_leaves(graph.to_torch()(x))[0], expected[0])


def test_one_op_for_each_layer_and_direction():
    layer = nn.LSTM(4, 8, num_layers=2, bidirectional=True)
    graph = from_torch(layer.eval(), (torch.randn(100, 1, 4),))
    made = [op for op in graph.ops if isinstance(op, RecurrentOp)]
    assert [op.attrs.reverse for op in made] == [False, True, False, True]
    assert sum(op.macs() for op in made) == 4 * 100 * 4 * 8 * 8


PROJECTED: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("steps", [1, 5])
def test_projections(steps: int):
    layers = [nn.LSTM(6, 16, proj_size=3, **options) for options in PROJECTED]

    def call(x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> list[torch.Tensor]:
        results: list[torch.Tensor] = []
        for layer in layers:
            count = layer.num_layers * (1 + layer.bidirectional)
            given = x.transpose(0, 1) if layer.batch_first else x
            results += [*tree_leaves(layer(given)), *tree_leaves(layer(given, (hidden[:count], cell[:count])))]
        return results

    inputs = torch.randn(steps, 2, 6), torch.randn(4, 2, 3), torch.randn(4, 2, 16)
    module = Lambda(call)
    module.layers = nn.ModuleList(layers)
    expected = module.eval()(*inputs)
    graph = from_torch(module, inputs)
    for actual in (graph.evaluate(*inputs), tersor.compile(graph, check=False)(*inputs)):
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)


class Packing(nn.Module):
    """A layer on sequences of several lengths, which it packs itself if they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 8)

    def forward(self, x: Any) -> torch.Tensor:
        return self.layer(x if isinstance(x, PackedSequence) else pack_padded_sequence(x, [6, 2]))[0].data


def test_packed_sequences_are_refused():
    x = torch.randn(6, 2, 4)
    for given in (x, pack_padded_sequence(x, [6, 2])):
        with pytest.raises(TersorError, match=r"packed sequences .* at .*; call the layer on the padded tensor"):
            from_torch(Packing(), (given,))


def test_weights_made_at_run_time_are_refused():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 8)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            weights = {name: one * scale for name, one in self.layer.named_parameters()}
            return torch.func.functional_call(self.layer, weights, (x,))[0]

    with pytest.raises(TersorError, match="its weight is computed at run time"):
        tersor.compile(Scaled().eval(), (torch.randn(2, 1, 4), torch.tensor(2.0)))
