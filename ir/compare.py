"""Structural equality and fingerprints: whether two graphs are the same program with the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import zip_longest

from .core import Op, Value
from .graph import Graph
from .ops import WeightOp
from .printer import print_attrs, print_structure


def structurally_equal(left: Graph, right: Graph) -> bool:
    """Whether both graphs have the same ops in the same order, with equal attributes, types, locations and weights,
    and whether they are called alike.

    Names of values, of weights and of the graphs do not count; weights are compared by content.
    """
    return list(_canonical(left)) == list(_canonical(right))


def fingerprint(graph: Graph, *, numbers: bool = True) -> str:
    """SHA-256 (hexadecimal) over everything that `structurally_equal` compares.

    Without ``numbers``, the content of weights and the locations of ops do not count: graphs with one fingerprint do
    the same work.
    """
    digest = hashlib.sha256()
    for line in _canonical(graph, numbers):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def first_difference(left: Graph, right: Graph) -> Op | None:
    """The first op of ``left`` that differs from that of ``right`` at its place; None if there is none."""
    for op, other in zip_longest(left.ops, right.ops):
        if op is None or other is None or list(_own(op, left)) != list(_own(other, right)):
            return op or left.ops[-1]
    return None


def _own(op: Op, graph: Graph) -> Iterator[str]:
    yield f"{op.name} {'' if isinstance(op, WeightOp) else print_attrs(op.attrs)} {', '.join(map(repr, op.results))}"
    if isinstance(op, WeightOp):
        yield _content(graph, op.attrs.id)


def _canonical(graph: Graph, numbers: bool = True) -> Iterator[str]:
    places: dict[Value, int] = {}
    for value in graph.inputs:
        places[value] = len(places)
        yield f"input {value.type}"
    for op in graph.ops:
        operands = ",".join("_" if value is None else str(places[value]) for value in op.operands)
        types = ",".join(str(value.type) for value in op.results)
        location = op.location if numbers else ""
        if isinstance(op, WeightOp):
            yield f"weight {_content(graph, op.attrs.id) if numbers else ''} {types} {location}"
        else:
            yield f"{op.name}({operands}) {print_attrs(op.attrs)} {types} {location}"
        if op.body is not None:
            yield from _canonical(op.body, numbers)
        for value in op.results:
            places[value] = len(places)
    yield f"return {','.join(str(places[value]) for value in graph.outputs)}"
    if numbers:
        yield from (f"state {_content(graph, id)}" for id in graph.states)
        yield f"structure {graph.structure and print_structure(graph.structure)}"


def _content(graph: Graph, id: str) -> str:
    return graph.weights.digest(id) if id in graph.weights else id
