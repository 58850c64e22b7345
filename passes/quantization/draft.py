"""Graphs with notes, and what becomes of them when some layers compute in other ways than in float32.

A plan says for layers and products how they are computed: on integers, which notes about their operands ask for, or in
one of the other ways (`ways`). What a plan does not name stays in floating point, and gets back the numbers that it had
before accuracy passes prepared it for integers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from ...ir import Graph, Op, Rewriter, Value, is_constant
from ...ir.ops import LayerOp, WeightOp
from ..base import PassContext
from ..matching import prune, replace, tensor
from .integer_graph import IntegerGraph, Stored
from .placement import find_notes, float_layers, stored_as_integers
from .tidy import tidy
from .ways import LayerWay, WriteLayers

INTEGERS = "integers"  # the way of a layer whose operands are stored as such
Plan = Mapping[Op, str]  # names of ways; the ops are those of a draft's graph


@dataclass(frozen=True)
class Draft:
    """What plans make of a graph with notes.

    Attributes
    ----------
    rule
        Name of the rewrites.
    exact
        The graph before accuracy passes.
    graph
        The graph.
    ways
        The other ways by name, in the order in which they write their layers.
    """

    rule: str
    exact: Graph
    graph: Graph
    ways: Mapping[str, LayerWay]
    _writers: dict[str, WriteLayers] = field(default_factory=dict)

    def prepare(self, choices: Iterable[tuple[Op, str]], context: PassContext) -> None:
        """Look at the data for what may be written: layers, and the names of their ways."""
        wanted: dict[str, list[Op]] = {}
        twins = self.exact_twins(self.graph)
        for op, name in choices:
            if name != INTEGERS:
                wanted.setdefault(name, []).append(twins.get(op, op))
        for name, layers in wanted.items():
            self._writers[name] = self.ways[name].prepared(self.exact, layers, context)

    def planned(self, plan: Plan) -> tuple[Graph, list[Stored | None]]:
        """The graph after a plan, as a copy, and for each note the integers that it became, if it did."""
        copy, mapping = self.graph.clone_with_map()
        copied = {made: name for op, name in plan.items() if (made := mapping[op.result].op) is not None}
        stored = self._write(copied, copy, Rewriter(copy))
        return copy, [stored.get(mapping[note.result]) for note in find_notes(self.graph)]

    def apply(self, plan: Plan, rewriter: Rewriter) -> None:
        """Rewrite the graph itself."""
        self._write(plan, self.graph, rewriter)

    def without_notes(self) -> Graph:
        """The graph before accuracy passes, in floating point."""
        copy = self.exact.clone()
        leave_in_floating_point(self.rule, self.exact, copy, (), Rewriter(copy))
        return copy

    def exact_twins(self, graph: Graph) -> dict[Op, Op]:
        """The layers of the graph or of a copy, and those of the graph before accuracy passes."""
        return dict(zip(float_layers(graph), float_layers(self.exact), strict=True))

    def _write(self, plan: Plan, graph: Graph, rewriter: Rewriter) -> dict[Value, Stored]:
        """Rewrite the graph, or a copy of it; returns what is stored as integers."""
        twins = self.exact_twins(graph)
        by_way: dict[str, dict[Op, Op]] = {}
        for op, name in plan.items():
            by_way.setdefault(name, {})[op] = twins.get(op, op)
        integers = by_way.pop(INTEGERS, {})
        leave_in_floating_point(self.rule, self.exact, graph, integers, rewriter)
        stored: dict[Value, Stored] = {}
        if integers:
            rewriting = IntegerGraph(rewriter, self.rule, integers)
            rewriting.build()
            stored = rewriting.stored
        for name in (one for one in self.ways if one in by_way):
            self._writers[name](rewriter, self.rule, by_way[name])
        if plan:
            tidy(graph, rewriter, self.rule)
        return stored


def leave_in_floating_point(rule: str, exact: Graph, graph: Graph, layers: Collection[Op], rewriter: Rewriter) -> None:
    """Take back what only layers on integers need: notes, and the numbers that accuracy passes gave other layers."""
    pairs = list(zip(float_layers(exact), float_layers(graph), strict=True))
    needed = stored_as_integers(graph, layers)
    for note in find_notes(graph):
        if note.x not in needed and rewriter.commit(rule, note):
            replace(rewriter, note, note.x)
    for before, op in pairs:
        if op not in layers:
            for index in (1, 2):  # weight and bias
                _restore(rule, _operand(before, index), op, index, rewriter)


def _operand(op: LayerOp, index: int) -> Value | None:
    """An operand, or None where it was left out: a layer without a bias may have two operands only."""
    return op.operands[index] if index < len(op.operands) else None


def _restore(rule: str, before: Value | None, op: LayerOp, index: int, rewriter: Rewriter) -> None:
    made = _operand(op, index)
    old, now = tensor(before), tensor(made)
    same = old is now if old is None or now is None else torch.equal(old, now)
    computed = any(value is not None and not is_constant(value) for value in (before, made))
    if same or computed or not rewriter.commit(rule, op):
        return
    rewriter.set_operand(op, index, None if before is None or old is None else _weight(rule, before, old, rewriter))
    if made is not None:
        prune(rewriter, (made,))


def _weight(rule: str, before: Value, numbers: torch.Tensor, rewriter: Rewriter) -> Value:
    """A weight of another graph, under its own id where this one has it still."""
    stored = rewriter.graph.weights
    id = before.op.attrs.id if isinstance(before.op, WeightOp) else rule
    if id in stored and before.op is not None and torch.equal(stored[id], numbers):
        return rewriter.create(WeightOp, (), before.op.attrs).result
    return rewriter.weight(numbers, id)
