"""Where numbers that are NaN or infinite come from, for messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ir import Graph, Op, Value, evaluate
from ..ir.ops import WeightOp


def source_of_nonfinite(graph: Graph, inputs: Sequence[torch.Tensor], value: Value | None = None) -> str:
    """What makes numbers of ``value`` that are not finite, or of the first such output: an input, a weight or an op.

    The way leads back through operands that are not finite. So numbers that are infinite on purpose, such as those of a
    mask, are named only where they reach ``value``.

    Parameters
    ----------
    inputs
        Of the graph, on which it is evaluated.

    Returns
    -------
    ``input 'x'``, ``weight 'head.weight'`` or ``exp at 'head'``; empty where everything is finite.
    """
    bad: set[Value] = set()

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        bad.update(result for result, tensor in zip(op.results, results, strict=True) if not _is_finite(tensor))

    every = graph.with_state(inputs)
    bad.update(one for one, tensor in zip(graph.inputs, every, strict=True) if not _is_finite(tensor))
    evaluate(graph, every, observe)
    found = next((output for output in graph.outputs if output in bad), None) if value is None else value
    if found not in bad:
        return ""
    while found is not None and found.op is not None:
        earlier = next((operand for operand in found.op.inputs if operand in bad), None)
        if earlier is None:
            is_weight = isinstance(found.op, WeightOp)
            return f"weight {found.op.attrs.id!r}" if is_weight else found.op.describe()
        found = earlier
    return "" if found is None else f"input {found.name!r}"


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
