"""Calibration data runs through a graph batch by batch, and passes look at some of its values on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Sized

import torch

from ...ir import Graph, IRError, Op, TersorError, Value, check_inputs, evaluate
from ..base import PassContext
from ..progress import Remaining
from .placement import name_of


def calibration_batches(graph: Graph, calibration: Iterable[Sequence[torch.Tensor]] | None) -> Iterable[Sequence]:
    """The batches, one after another; raises TersorError where one does not fit, or where there is none."""
    index = -1
    for index, batch in enumerate(calibration or ()):
        try:
            check_inputs(graph, batch)
        except IRError as error:
            raise TersorError(f"calibration batch {index} does not fit: {error}") from error
        yield batch
    if index < 0:
        raise TersorError("needs calibration data: give at least one batch of inputs (calibration=...)")


def watch(
    graph: Graph, wanted: Collection[Value], context: PassContext, see: Callable[[Value, torch.Tensor], None]
) -> int:
    """Run all calibration batches, and tell what ``wanted`` values are in each; returns the number of batches.

    State goes from batch to batch, as it will from call to call. Raises TersorError where there is no data, where a
    batch does not fit, or where it makes numbers of a wanted value that are not finite.
    """
    count, total = 0, len(context.calibration) if isinstance(context.calibration, Sized) else None
    remaining = Remaining(context.progress, "calibration batches", total)

    def tell(value: Value, tensor: torch.Tensor) -> None:
        if value not in wanted:
            return
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TersorError(f"calibration batch {count} makes numbers at {name_of(value)} that are not finite")
        see(value, tensor)

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(op.results, results, strict=True):
            tell(value, tensor)

    state: Sequence[torch.Tensor] = ()
    for batch in calibration_batches(graph, context.calibration):
        inputs = graph.with_state((*batch, *state))
        for value, tensor in zip(graph.inputs, inputs, strict=True):
            tell(value, tensor)
        state = evaluate(graph, inputs, observe)[len(graph.user_outputs) :]
        count += 1
        remaining.step()
    return count
