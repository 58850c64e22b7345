"""One op as a graph of its own, to be run, timed or rewritten apart from its network."""

from __future__ import annotations

from collections.abc import Sequence

from .analysis import is_constant
from .core import Op, Value
from .graph import Graph, clone_op
from .ops import RelayoutOp


def graph_of(op: Op) -> Graph:
    """A graph of ``op`` alone: constants that it reads stay constants, everything else becomes an input.

    Inputs and outputs are row-major, as every program's are; what is stored in channel blocks is converted.
    """
    assert op.graph is not None
    variable = [value for value in dict.fromkeys(op.inputs) if not is_constant(value)]
    inputs = [(f"x{index}", value.type.logical) for index, value in enumerate(variable)]
    graph = Graph(op.name, inputs, op.graph.weights.copy())
    mapping: dict[Value, Value] = {}
    for value, given in zip(variable, graph.inputs, strict=True):
        mapping[value] = stored_in_blocks(graph, given, value.type.channel_block)
    append_clones(graph, (op,), mapping)
    graph.outputs = tuple(stored_in_blocks(graph, mapping[result], 0) for result in op.results)
    return graph


def append_clones(graph: Graph, ops: Sequence[Op], mapping: dict[Value, Value]) -> None:
    """Append copies of ``ops`` to another graph, behind copies of the constants that they read.

    ``mapping`` has what stands for all else that they read, and gets what stands for what is copied.
    """
    made = {result for op in ops for result in op.results}
    for value in dict.fromkeys(value for op in ops for value in op.inputs):
        if value not in made and value.op is not None and is_constant(value):
            graph.append(clone_op(value.op, mapping))
    for op in ops:
        graph.append(clone_op(op, mapping))


def stored_in_blocks(graph: Graph, value: Value, block: int) -> Value:
    """``value``, converted to channel blocks of that many channels; 0 stands for row-major."""
    if value.type.channel_block == block:
        return value
    relayout = graph.append(RelayoutOp((value,), RelayoutOp.attrs_type(channel_block=block)))
    relayout.result.type = value.type.with_layout(block)
    return relayout.result
