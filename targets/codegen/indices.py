"""Which inputs of a graph are row numbers of tables, so that a call can refuse the ones that a table lacks."""

from __future__ import annotations

from ...ir import Graph, Value
from ...ir.ops import CastOp, EmbeddingOp, ExpandOp, PermuteOp, RelayoutOp, ReshapeOp, ScatterOp

# What leaves every row number as it is, and drops none.
_KEEPS_NUMBERS = (CastOp, ExpandOp, PermuteOp, RelayoutOp, ReshapeOp)


def index_limits(graph: Graph) -> dict[Value, int]:
    """Inputs that reach the indices of an embedding or a scatter unchanged, and the rows of the smallest such table."""
    limits: dict[Value, int] = {}
    for op in graph.ops:
        if not isinstance(op, EmbeddingOp | ScatterOp):
            continue
        source = _source(op.indices)
        if source in graph.inputs and not source.type.dtype.is_floating:
            rows = op.table.shape[0]
            limits[source] = min(rows, limits.get(source, rows))
    return limits


def _source(value: Value) -> Value:
    while isinstance(value.op, _KEEPS_NUMBERS):
        value = value.op.x
    return value
