"""What a call of a compiled graph takes and returns.

Inputs that are row numbers of tables are known as such, so that a call can refuse the ones that a table lacks.
"""

from __future__ import annotations

import torch

from ...ir import DType, Graph, Value
from ...ir.ops import TableOp
from .model_info import Port

# Element types that TVM cannot address, and what lies in memory instead.
STORED_AS = {DType.BOOL: torch.uint8, DType.BF16: torch.uint16}


def ports(graph: Graph) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the compiled graph, in call order."""
    limits = _index_limits(graph)
    inputs = tuple(Port(value.name, value.type, limits.get(value, 0)) for value in graph.inputs)
    names = [*(f"output{index}" for index in range(len(graph.user_outputs))), *graph.states]
    return inputs, tuple(Port(name, value.type) for name, value in zip(names, graph.outputs, strict=True))


def _index_limits(graph: Graph) -> dict[Value, int]:
    """Inputs that reach the indices of a table unchanged, and the rows of the smallest such table."""
    limits: dict[Value, int] = {}
    for op in graph.ops:
        if not isinstance(op, TableOp):
            continue
        source = _source(op.indices)
        if source in graph.inputs and not source.type.dtype.is_floating:
            rows = op.table.shape[0]
            limits[source] = min(rows, limits.get(source, rows))
    return limits


def _source(value: Value) -> Value:
    while value.op is not None and value.op.keeps_numbers:
        value = value.op.inputs[0]
    return value
