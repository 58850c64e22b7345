"""Calibration data runs through a graph batch by batch, and passes look at some of its values on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from ...ir import Graph, IRError, Op, TersorError, Value, evaluate
from ..base import PassContext
from ..calibration import Batches
from ..nonfinite import source_of_nonfinite
from ..numeric import calibration_batches
from ..progress import Remaining
from .placement import name_of


def watch(
    graph: Graph, wanted: Collection[Value], context: PassContext, see: Callable[[Value, torch.Tensor], None]
) -> int:
    """Run all calibration batches, and tell what ``wanted`` values are in each; returns the number of batches.

    State goes from batch to batch, as it will from call to call. Raises TersorError where there is no data, where a
    batch does not fit, or where it makes numbers of a wanted value that are not finite.
    """
    count = 0
    total = context.calibration.total if isinstance(context.calibration, Batches) else None
    remaining = Remaining(context.progress, "calibration batches", total)

    def tell(value: Value, tensor: torch.Tensor) -> None:
        if value not in wanted:
            return
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            source = source_of_nonfinite(graph, inputs, value)
            is_there = value.op is None or source == value.op.describe()
            told = "" if is_there else f": they come from {source}"
            raise TersorError(f"calibration batch {count} makes numbers at {name_of(value)} that are not finite{told}")
        see(value, tensor)

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(op.results, results, strict=True):
            tell(value, tensor)

    state: Sequence[torch.Tensor] = ()
    for batch in calibration_batches(graph, context.calibration):
        inputs = graph.with_state((*batch, *state))
        for value, tensor in zip(graph.inputs, inputs, strict=True):
            tell(value, tensor)
        try:
            state = evaluate(graph, inputs, observe)[len(graph.user_outputs) :]
        except IRError as error:
            raise TersorError(f"calibration batch {count} cannot be computed: {error}") from error
        count += 1
        remaining.step()
    return count
