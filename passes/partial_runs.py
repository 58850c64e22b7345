"""A graph evaluated from any of its ops on, with something changed: what a change does costs only what follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..ir import Graph, Op, Value, check_inputs, evaluate_op, is_constant
from ..ir.ops import WeightOp

Outputs = tuple[torch.Tensor, ...]
Evaluate = Callable[..., torch.Tensor]  # of an op's operands, None where one is missing, to its only result
AliveValues = dict[Value, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """What a graph computes in place of something else.

    Attributes
    ----------
    weights
        Other numbers of weights, by id; of the same shape and type.
    ops
        Functions in place of ops' own evaluation.
    """

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ops: Mapping[Op, Evaluate] = field(default_factory=dict)


NO_CHANGE = Change()


class PartialRuns:
    """Evaluates a graph from any of its ops on, with a change.

    Parameters
    ----------
    graph
        Without symbols and fused ops.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ops = graph.ops
        last = {value: index for index, op in enumerate(self.ops) for value in (*op.results, *op.inputs)}
        self._dead: list[list[Value]] = [[] for _ in self.ops]  # what nobody reads after an op
        for value, index in last.items():
            if not value.is_output:
                self._dead[index].append(value)

    def begin(self, inputs: Sequence[torch.Tensor]) -> AliveValues:
        """The inputs' values; state has its initial value."""
        given = self.graph.with_state(inputs)
        check_inputs(self.graph, given)
        return dict(zip(self.graph.inputs, given, strict=True))

    def step(self, values: AliveValues, index: int, change: Change = NO_CHANGE) -> None:
        """Evaluate op ``index``; ``values`` are those that are alive, before and after."""
        op = self.ops[index]
        operands = [None if value is None else values[value] for value in op.operands]
        results: Outputs
        if op in change.ops:
            results = (change.ops[op](*operands),)
        elif isinstance(op, WeightOp) and op.attrs.id in change.weights:
            results = (change.weights[op.attrs.id],)
        else:
            results = evaluate_op(op, operands)
        values.update(zip(op.results, results, strict=True))
        for value in self._dead[index]:
            values.pop(value, None)

    def branch(self, values: AliveValues, change: Change = NO_CHANGE) -> AliveValues:
        """A copy, to go on from with a change: of weights that are alive it has the new numbers."""
        return {
            value: change.weights.get(value.op.attrs.id, tensor) if isinstance(value.op, WeightOp) else tensor
            for value, tensor in values.items()
        }

    def finish(self, values: AliveValues, index: int = 0, change: Change = NO_CHANGE) -> Outputs:
        """The user's outputs, computed from op ``index`` on; ``values`` stay as they are."""
        values = self.branch(values, change)
        with torch.no_grad():
            for at in range(index, len(self.ops)):
                self.step(values, at, change)
        return tuple(values[value] for value in self.graph.user_outputs)

    def bytes_alive(self) -> int:
        """The most that is alive at once while a batch is swept, weights and outputs aside."""
        most = alive = sum(value.type.bytes for value in self.graph.inputs)
        for op, dead in zip(self.ops, self._dead, strict=True):
            alive += sum(value.type.bytes for value in op.results if not is_constant(value))
            most = max(most, alive)
            alive -= sum(value.type.bytes for value in dead if not is_constant(value))
        return max(1, most)
