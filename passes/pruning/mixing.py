"""Which dimensions of a value some later op reads as a whole, so that channels which lie along them could not go.

A reshape that splits channels has a choice: of [N, T, heads * size] as [N, T, heads, size], either all of a head can go
together or an index of all heads. What decides is what reads them: attention takes a product over each head's size, so
channels have to lie along the heads. Layer norm over groups of channels, [N, groups, rest], leaves the groups apart.
So this is asked from the outputs backwards, before labels flow from the inputs onwards (`groups`). It is advice for
reshapes only: what must stay is found by the labels.
"""

from __future__ import annotations

from ...ir import Graph, Value
from .atoms import Mixed
from .flows import flow_of


def mixed_dims(graph: Graph) -> dict[Value, Mixed]:
    """For each dimension of each value, whether some op that the value reaches reads it as a whole."""
    values = [*graph.inputs, *(result for op in graph.ops for result in op.results)]
    mixed: dict[Value, Mixed] = {value: (False,) * value.type.rank for value in values}
    mixed.update((value, (True,) * value.type.rank) for value in graph.outputs)
    for op in reversed(graph.ops):
        for index, value in enumerate(op.operands):
            if value is not None:
                found = flow_of(op).mixes(op, index, mixed[op.results[0]])
                mixed[value] = tuple(old or new for old, new in zip(mixed[value], found, strict=True))
    return mixed
