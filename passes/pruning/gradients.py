"""Gradients of a graph on calibration data, with respect to weights and to gates on what layers read.

What is differentiated is a function of the user, or, without one, how far the outputs are from those of the network as
it is. That distance is zero here, and so is its gradient; what a change costs is its second-order term, half the square
of the outputs' change: ``|J d|^2 / 2`` for a change ``d`` and the Jacobian ``J`` of the outputs. For random signs ``v``
the square of ``v . (J d)`` is ``|J d|^2`` on the mean (Hutchinson 1990), so ``v . outputs`` is what is differentiated,
with seeded signs for each batch and outputs in units of their root mean square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, TersorError, Value, evaluate_op
from ...ir.foreign import UserObject
from ...ir.imports import find_function, one_line
from ...ir.ops import WeightOp
from ..nonfinite import source_of_nonfinite

Loss = Callable[[UserObject, int], torch.Tensor]  # what the model returns, and the number of the batch, from 0


def find_loss(name: str | None) -> Loss | None:
    """The user's function that an option names as ``package.module:function``; None for None."""
    found: Loss | None = None if name is None else find_function(name, "that takes outputs and returns a loss")
    return found


@dataclass(frozen=True)
class Objective:
    """What is differentiated.

    Attributes
    ----------
    graph
        Whose outputs it takes.
    loss
        The user's function, or None for the distance to the outputs as they are.
    seed
        Of the random signs.
    """

    graph: Graph
    loss: Loss | None
    seed: int

    def at(
        self,
        batch: Sequence[torch.Tensor],
        index: int,
        gates: Mapping[Op, torch.Tensor] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """A number with a gradient by gates and weights (see `run_differentiably`), on calibration batch ``index``.

        Raises
        ------
        TersorError
            When the user's function raises, or returns anything but one finite number that depends on the outputs; or
            when no output is a floating-point number. Of a number that is not finite, the message names its source.
        """
        outputs = run_differentiably(self.graph, batch, gates, weights)
        found = self._projection(outputs, index) if self.loss is None else self._users(self.loss, outputs, index)
        if not bool(found.isfinite().all()):
            source = source_of_nonfinite(self.graph, batch)
            first = f" (the first numbers that are not finite are those of {source})" if source else ""
            raise TersorError(
                f"calibration batch {index} makes the loss {found.item():g}{first}, so channels cannot be scored"
            )
        return found

    def _users(self, loss: Loss, outputs: Sequence[torch.Tensor], batch: int) -> torch.Tensor:
        found = call_loss(loss, self.graph, outputs, batch)
        if not found.requires_grad:
            raise _wrong_loss(loss)
        return found

    def _projection(self, outputs: Sequence[torch.Tensor], batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + batch)
        parts = []
        for output in outputs[: len(self.graph.user_outputs)]:
            if output.is_floating_point() and output.requires_grad:
                signs = 2.0 * torch.randint(0, 2, output.shape, generator=generator) - 1
                size = output.detach().double().square().mean().sqrt().clamp(min=1e-30)
                parts.append((signs * output).sum(dtype=torch.float64) / size)
        if not parts:
            raise TersorError("no output depends on the channels as a floating-point number; give a loss")
        return torch.stack(parts).sum()


def call_loss(loss: Loss, graph: Graph, outputs: Sequence[torch.Tensor], batch: int) -> torch.Tensor:
    """What the user's function says of the outputs of ``graph``: one number, as a tensor of rank 0.

    Raises
    ------
    TersorError
        When it raises, or returns anything else.
    """
    try:
        found = loss(graph.returned(outputs), batch)
    except Exception as error:  # the user's own code
        name, kind = getattr(loss, "__name__", "it"), type(error).__name__
        raise TersorError(f"the loss {name} raised {kind} on batch {batch}: {one_line(error)}") from error
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise _wrong_loss(loss)
    return found.reshape(())


def _wrong_loss(loss: Loss) -> TersorError:
    name = getattr(loss, "__name__", "it")
    return TersorError(f"the loss {name} must return one number, a tensor made of the outputs without detach()")


def run_differentiably(
    graph: Graph,
    batch: Sequence[torch.Tensor],
    gates: Mapping[Op, torch.Tensor] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    """The outputs of ``graph`` as functions of gates and weights.

    Parameters
    ----------
    gates
        For ops, what their first operand is multiplied by.
    weights
        Tensors in place of those in the graph's store, by id.
    """
    gates, weights = gates or {}, weights or {}
    values: dict[Value, torch.Tensor] = dict(zip(graph.inputs, graph.with_state(batch), strict=True))
    remaining = Counter(value for op in graph.ops for value in op.inputs)
    remaining.update(graph.outputs)
    with torch.enable_grad():
        for op in graph.ops:
            operands = [None if value is None else values[value] for value in op.operands]
            if op in gates and operands[0] is not None:
                operands[0] = operands[0] * gates[op]
            is_given = isinstance(op, WeightOp) and op.attrs.id in weights
            results = (weights[op.attrs.id],) if is_given else evaluate_op(op, operands)
            values.update(zip(op.results, results, strict=True))
            for value in op.inputs:
                remaining[value] -= 1
                if not remaining[value]:
                    del values[value]
    return tuple(values[value] for value in graph.outputs)


def gradients(objective: torch.Tensor, leaves: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of ``objective`` by each of ``leaves``, in float64; zeros where it does not depend on one."""
    found = torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True)
    return tuple(one.detach().double() for one in found)


def curvatures(
    objective: Objective, ids: Sequence[str], batches: Iterable[Sequence[torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Second derivatives of what is differentiated by single weights, after Gauss and Newton: squares of gradients.

    They are summed over the batches, in float64. With a loss, they are those of the batches' losses (the empirical
    Fisher information), so batches should be small; without one, they are exact on the mean over random signs.

    Parameters
    ----------
    ids
        Of the weights.
    """
    weights = objective.graph.weights
    leaves = {id: weights[id].detach().clone().requires_grad_() for id in ids}
    found = {id: torch.zeros(leaf.shape, dtype=torch.float64) for id, leaf in leaves.items()}
    for index, batch in enumerate(batches):
        found_gradients = gradients(objective.at(batch, index, weights=leaves), list(leaves.values()))
        for id, gradient in zip(ids, found_gradients, strict=True):
            found[id] += gradient.square()
    return found
