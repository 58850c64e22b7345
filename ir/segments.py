"""A graph of several outputs cut into segments, one for each output: what is computed on the way to it, and no more.

Segments run one after another. A value that a later one reads is handed on: the segment that makes it returns it behind
its own output. Values that are known at some time are numbered: first the graph's inputs, then what the first segment
hands on, then what the second does, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx

from .analysis import dataflow
from .core import Op, Value
from .errors import IRError
from .graph import Graph
from .isolate import append_clones


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a graph.

    Attributes
    ----------
    graph
        What it computes: its output is that of the whole graph, behind which stand the values that it hands on. Weights
        are shared.
    takes
        The number of each of its inputs among the values that are known when it begins.
    """

    graph: Graph
    takes: tuple[int, ...]


def cut_into_segments(graph: Graph) -> tuple[Segment, ...]:
    """One segment for each output, in their order.

    Raises
    ------
    IRError
        When an output needs nothing to be computed that the one before it did not need; it is named by its number.
    """
    flow = dataflow(graph)
    places: dict[Op, int] = {}
    for number, output in enumerate(graph.outputs):
        needed = {output.op, *networkx.ancestors(flow, output.op)} if output.op in flow else set()
        fresh = [op for op in needed if op not in places]
        if output.op not in fresh:
            raise IRError(
                f"output {number} needs no layer that the outputs before it do not need: return exits in order, the"
                " earliest first"
            )
        places.update((op, number) for op in fresh)
    parts: list[list[Op]] = [[] for _ in graph.outputs]
    for op in graph.ops:
        if op in places:
            parts[places[op]].append(op)
    known = list(graph.inputs)
    segments = []
    for number, (part, output) in enumerate(zip(parts, graph.outputs, strict=True)):
        handed = [
            value for op in part for value in op.results if any(places.get(one, 0) > number for one in value.users)
        ]
        segments.append(_segment(graph, part, known, (output, *handed)))
        known += handed
    return tuple(segments)


def _segment(graph: Graph, part: Sequence[Op], known: Sequence[Value], outputs: Sequence[Value]) -> Segment:
    read = {value for op in part for value in op.inputs}
    taken = [value for value in known if value in read]
    inputs = [(value.name or f"handed{known.index(value)}", value.type) for value in taken]
    segment = Graph(graph.name, inputs, graph.weights.copy())
    mapping: dict[Value, Value] = dict(zip(taken, segment.inputs, strict=True))
    append_clones(segment, part, mapping)
    segment.outputs = tuple(mapping[value] for value in outputs)
    segment.forget_unused_weights()
    return Segment(segment, tuple(known.index(value) for value in taken))
