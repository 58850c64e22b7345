"""What rewrites share: reading constants, and replacing an op together with what only it needed."""

from __future__ import annotations

import torch

from ..ir import Op, Rewriter, Value, is_constant
from ..ir.ops import FullOp, WeightOp


def scalar(value: Value | None) -> float | int | bool | None:
    """The number that fills ``value``, if it is a `FullOp` of any shape; else None."""
    return value.op.attrs.value if value is not None and isinstance(value.op, FullOp) else None


def tensor(value: Value | None) -> torch.Tensor | None:
    """The numbers of a constant, or None if ``value`` is no constant or its weight is not loaded."""
    if value is None or not is_constant(value):
        return None
    op = value.op
    if isinstance(op, WeightOp) and (op.graph is None or op.attrs.id not in op.graph.weights):
        return None
    return op.evaluate()


def weight_name(value: Value, suffix: str) -> str:
    """An id for a new weight that tells where it comes from: ``"conv1.weight"`` -> ``"conv1.weight.folded"``."""
    stem = value.op.attrs.id if isinstance(value.op, WeightOp) else (value.op.location if value.op else value.name)
    return f"{stem}.{suffix}" if stem and not stem.endswith(f".{suffix}") else stem or suffix


def replace(rewriter: Rewriter, op: Op, value: Value) -> None:
    """Make all readers of ``op`` read ``value``, remove ``op``, and what nothing reads any more."""
    operands = op.inputs
    rewriter.replace(op, value)
    prune(rewriter, operands)


def prune(rewriter: Rewriter, values: tuple[Value, ...]) -> None:
    """Remove the ops that make ``values`` if nothing reads them, and so on through their operands."""
    pending = list(values)
    while pending:
        op = pending.pop().op
        if op is None or op.graph is not rewriter.graph or any(result.uses for result in op.results):
            continue
        pending.extend(op.inputs)
        rewriter.erase(op)
