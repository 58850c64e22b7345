"""Recurrent layers: the loop over time of one layer in one direction.

What a layer computes of its input alone, for all steps, is a linear layer in front: an operand, ``gates``. What is left
is one small product a step, of the state with ``weight``, and the cell's formula. See the formulas of `torch.nn.LSTM`,
`torch.nn.GRU` and `torch.nn.RNN`, whose order of gates is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow
from ..types import TensorType


@dataclass(frozen=True)
class RecurrentAttrs(Attrs):
    """``reverse`` goes from the last step to the first; results stay at the places of their steps."""

    reverse: bool = False


class RecurrentOp(Op):
    """Base of the recurrent layers: gates [T, N, G * H], weight [G * H, H], hidden [N, H] -> the states [T, N, H]."""

    gates = Operand()
    weight = Operand()
    hidden = Operand()
    gate_count: ClassVar[int]
    channels = ChannelFlow.RECURRENT

    @property
    def units(self) -> int:
        """H: numbers of one state."""
        return self.hidden.shape[-1]

    @property
    def order(self) -> range:
        """Steps in the order in which they are computed."""
        steps = range(self.gates.shape[0])
        return steps[::-1] if self.attrs.reverse else steps

    def infer_types(self) -> tuple[TensorType, ...]:
        gates, hidden = self.gates.type, self.hidden.type
        if gates.rank != 3 or hidden.rank != 2 or gates.shape[1] != hidden.shape[0]:
            raise self.error(f"hidden {hidden} does not fit gates {gates}")
        rows = self.gate_count * self.units
        if gates.shape[2] != rows or self.weight.shape != (rows, self.units):
            raise self.error(f"weight {self.weight.type} and gates {gates} do not fit {self.units} hidden units")
        if not gates.dtype.is_floating or any(value.type.dtype is not gates.dtype for value in self.inputs):
            raise self.error("operands must have one floating-point type")
        return (gates.with_shape((*gates.shape[:2], self.units)),)

    def macs(self) -> int:
        return self.gates.type.size * self.units

    def apart(self, index: int, axis: int) -> int | None:
        samples = 1 if index == 0 else 0  # of the gates, and of the states that they begin with
        return 1 if index != 1 and axis == samples else None

    def step(self, gates: torch.Tensor, hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """The next state [N, H] from one step's gates [N, G * H] and the product of state and weight."""
        raise NotImplementedError

    def evaluate(
        self, gates: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        states = gates.new_empty((*gates.shape[:2], self.units))
        for time in self.order:
            states[time] = hidden = self.step(gates[time], hidden @ weight.T, hidden, *rest)
        return states


class TanhRnnOp(RecurrentOp, name="rnn_tanh", attrs=RecurrentAttrs):
    """h' = tanh(gates + W h)."""

    gate_count = 1

    def step(self, gates: torch.Tensor, product: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(gates + product)


class ReluRnnOp(RecurrentOp, name="rnn_relu", attrs=RecurrentAttrs):
    """h' = max(gates + W h, 0)."""

    gate_count = 1

    def step(self, gates: torch.Tensor, product: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.relu(gates + product)


class GruOp(RecurrentOp, name="gru", attrs=RecurrentAttrs):
    """r, z = sigmoid(gates + W h); n = tanh(gates + r * (W h + bias)); h' = (1 - z) * n + z * h.

    ``bias`` [H] is that of the state's product in the gate n; the others' are part of ``gates``.
    """

    bias = Operand()
    gate_count = 3

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.bias.shape != (self.units,):
            raise self.error(f"bias {self.bias.type} does not fit {self.units} hidden units")
        return super().infer_types()

    def step(
        self, gates: torch.Tensor, product: torch.Tensor, hidden: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        own = gates.chunk(3, -1)
        others = product.chunk(3, -1)
        reset, update = (torch.sigmoid(own[index] + others[index]) for index in range(2))
        new = torch.tanh(own[2] + reset * (others[2] + bias))
        return new + update * (hidden - new)


class LstmOp(RecurrentOp, name="lstm", attrs=RecurrentAttrs):
    """i, f, g, o = gates + W h; c' = sigmoid(f) * c + sigmoid(i) * tanh(g); h' = sigmoid(o) * tanh(c').

    ``cell`` [N, H] is the first c; the last one is the result's last row: [T + 1, N, H].
    """

    cell = Operand()
    gate_count = 4

    def infer_types(self) -> tuple[TensorType, ...]:
        (states,) = super().infer_types()
        if self.cell.shape != self.hidden.shape:
            raise self.error(f"cell {self.cell.type} does not fit hidden {self.hidden.type}")
        return (states.with_shape((states.shape[0] + 1, *states.shape[1:])),)

    def evaluate(
        self, gates: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> torch.Tensor:
        rows = gates.new_empty((gates.shape[0] + 1, *hidden.shape))
        for time in self.order:
            admit, forget, new, output = (gates[time] + hidden @ weight.T).chunk(4, -1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(admit) * torch.tanh(new)
            rows[time] = hidden = torch.sigmoid(output) * torch.tanh(cell)
        rows[-1] = cell
        return rows
