"""Structural equality and fingerprints: whether two graphs are the same program with the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from .core import Value
from .graph import Graph
from .ops import WeightOp
from .printer import print_attrs


def structurally_equal(left: Graph, right: Graph) -> bool:
    """Whether both graphs have the same ops in the same order, with equal attributes, types, locations and weights.

    Names of values, of weights and of the graphs do not count; weights are compared by content.
    """
    return list(_canonical(left)) == list(_canonical(right))


def fingerprint(graph: Graph) -> str:
    """SHA-256 (hexadecimal) over everything that `structurally_equal` compares."""
    digest = hashlib.sha256()
    for line in _canonical(graph):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _canonical(graph: Graph) -> Iterator[str]:
    numbers: dict[Value, int] = {}
    for value in graph.inputs:
        numbers[value] = len(numbers)
        yield f"input {value.type}"
    for op in graph.ops:
        operands = ",".join("_" if value is None else str(numbers[value]) for value in op.operands)
        types = ",".join(str(value.type) for value in op.results)
        if isinstance(op, WeightOp):
            id = op.attrs.id
            content = graph.weights.digest(id) if id in graph.weights else id
            yield f"weight {content} {types} {op.location}"
        else:
            yield f"{op.name}({operands}) {print_attrs(op.attrs)} {types} {op.location}"
        if op.body is not None:
            yield from _canonical(op.body)
        for value in op.results:
            numbers[value] = len(numbers)
    yield f"return {','.join(str(numbers[value]) for value in graph.outputs)}"
