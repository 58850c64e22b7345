"""Recurrent layers: PyTorch's, whose gates stand in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..known import default_only, numbers, refuse
from ..registry import operators

Tensor = torch.Tensor

# For each operator: PyTorch's function, the gates of PyTorch as places of ONNX's, and the activations.
_LAYERS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], Sequence[int], Sequence[str]]] = {
    "LSTM": (torch.lstm, (0, 2, 3, 1), ("sigmoid", "tanh", "tanh")),
    "GRU": (torch.gru, (1, 0, 2), ("sigmoid", "tanh")),
    "RNN": (torch.rnn_tanh, (0,), ("tanh",)),
}


def _layer(name: str) -> Callable[..., tuple[Tensor, ...]]:
    layer, order, usual = _LAYERS[name]

    def compute(
        x: Tensor,
        own: Tensor,
        recurrent: Tensor,
        biases: Tensor | None = None,
        lengths: Tensor | None = None,
        hidden: Tensor | None = None,
        cell: Tensor | None = None,
        peepholes: Tensor | None = None,
        *,
        activation_alpha: Sequence[float] = (),
        activation_beta: Sequence[float] = (),
        activations: Sequence[str] = (),
        clip: float = 0.0,
        direction: str = "forward",
        hidden_size: int = 0,
        input_forget: int = 0,
        layout: int = 0,
        linear_before_reset: int = 0,
    ) -> tuple[Tensor, ...]:
        """Of [steps, N, inputs], or [N, steps, inputs] in layout 1; all weights have the direction first."""
        function = layer
        chosen = [one.lower() for one in activations] or list(usual) * own.shape[0]
        if name == "RNN" and set(chosen) == {"relu"}:
            function = torch.rnn_relu
        elif chosen != list(usual) * own.shape[0]:
            refuse(f"activations {', '.join(activations)}")
        default_only(clip=clip, input_forget=input_forget)
        if peepholes is not None:
            refuse("peepholes")
        if name == "GRU" and not linear_before_reset:
            refuse("linear_before_reset is 0; PyTorch's layers, which are supported, have 1")
        x = x.transpose(0, 1) if layout else x
        if lengths is not None and set(numbers(lengths)) != {x.shape[0]}:
            refuse("sequences of different lengths")
        units, batch = recurrent.shape[-1], x.shape[1]
        states = []
        for state in (hidden, cell) if name == "LSTM" else (hidden,):
            given = torch.zeros(own.shape[0], batch, units, dtype=x.dtype) if state is None else state
            states.append(given.transpose(0, 1) if layout and state is not None else given)
        params = []
        for one in range(own.shape[0]):
            params += [_turned(own[one], order), _turned(recurrent[one], order)]
            if biases is not None:
                params += [_turned(part, order) for part in biases[one].chunk(2)]
        x = x.flip(0) if direction == "reverse" else x
        options = (biases is not None, 1, 0.0, False, direction == "bidirectional", False)
        result, *last = function(x, states if name == "LSTM" else states[0], params, *options)
        result = result.flip(0) if direction == "reverse" else result
        result = result.unflatten(-1, (own.shape[0], units))  # [steps, N, directions, units]
        if not layout:
            return result.transpose(1, 2), *last
        return result.transpose(0, 1), *(one.transpose(0, 1) for one in last)

    return compute


def _turned(gates: Tensor, order: Sequence[int]) -> Tensor:
    parts = gates.chunk(len(order))
    return torch.cat([parts[place] for place in order])


operators({name: name for name in _LAYERS}, _layer)
