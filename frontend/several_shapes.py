"""One graph for several shapes out of conversions at fixed ones: for models whose converters need plain numbers.

A model is converted at several assignments of its symbols. The graphs must have the same ops, which differ in whole
numbers only: axes and element types are the same, shapes and positions of slices are not. For each number that differs
a formula is looked for (`formulas`). Types of results follow by the type rules, and must be those of every conversion.
What differs otherwise is refused, by the name of its node: another branch of an If, or a table for each length.

Constants are computed while a model is converted. Those whose shape follows from the symbols, such as a range of
positions, or a slice of a table, are to become ops in its place: a node that makes one is converted again with nothing
computed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

import numpy as np
import torch

from ..ir import Attrs, Graph, IRError, Op, Symbol, TensorType, TersorError, Value, is_symbolic, told
from ..ir.binding import at, check_numbers
from ..ir.foreign import Instance
from ..ir.ops import WeightOp
from .formulas import FormulaTable

ResultT = TypeVar("ResultT")
Types = Mapping[str, TensorType]  # of inputs, by name
Shapes = tuple[tuple[int, ...], ...]

_NEAR, _FAR = 5, 2  # assignments beside the hints: neighbours, where a model must convert, and others, where it may
_POOL = 8  # neighbours of a hint to choose from
_ATTEMPTS = 100
_SHOWN = 4  # assignments in a message
_ROUNDS = 8  # in which nodes are found that make constants out of others' constants
_FEWEST = 2  # an extent of 1 is broadcast, so that no number should stand for it


@dataclass(frozen=True)
class Conversion:
    """A model, converted at fixed shapes.

    Attributes
    ----------
    graph
        Its ops have the names of nodes as locations.
    constants
        Shapes of what was computed at once, by the names of nodes.
    """

    graph: Graph
    constants: Mapping[str, Shapes]


# Converts at fixed types of the inputs; nodes of these names compute nothing at once.
Convert = Callable[[Types, frozenset[str]], Conversion]


def convert_for_symbols(convert: Convert, types: Types, symbols: Sequence[Symbol], subject: str) -> Graph:
    """A graph with symbols, from conversions at several shapes.

    Parameters
    ----------
    convert
        Converts the model for fixed types of its inputs.
    types
        The types of the inputs, with symbols.
    subject
        Names the model in messages.

    Raises
    ------
    TersorError
        When the model cannot be converted at some shape near the hints, or something other than an extent follows from
        the symbols.
    """
    return _SeveralShapes(convert, types, symbols, subject).graph()


class _SeveralShapes:
    def __init__(self, convert: Convert, types: Types, symbols: Sequence[Symbol], subject: str) -> None:
        self.convert, self.types, self.symbols, self.subject = convert, types, tuple(symbols), subject
        self.varying: frozenset[str] = frozenset()  # names of nodes

    def graph(self) -> Graph:
        near, far = self._told(_assignments, self.symbols)
        first = self._first_two(near[0], near[1])
        near_by = [self._at(numbers) for numbers in near[2:]]
        conversions, numbers = [*first, *near_by], [*near]
        for assignment in far:
            try:
                conversions.append(self.convert(self._types_at(assignment), self.varying))
            except TersorError:  # it may have an upper bound, which shows when the graph is bound to that
                continue
            numbers.append(assignment)
        union = _Union([one.graph for one in conversions], self.types, self.symbols, numbers)
        graph = self._told(union.graph)
        self._check_least(graph)
        return graph

    def _told(self, make: Callable[..., ResultT], *args: Instance) -> ResultT:
        """What a function gives, with the model named in its error."""
        try:
            return make(*args)
        except TersorError as error:
            raise TersorError(f"{self.subject}: {error}") from error

    def _types_at(self, numbers: Mapping[str, int]) -> Types:
        check_numbers(self.symbols, numbers)
        return {name: _bound(type, numbers) for name, type in self.types.items()}

    def _at(self, numbers: Mapping[str, int]) -> Conversion:
        try:
            return self.convert(self._types_at(numbers), self.varying)
        except TersorError as error:
            raise TersorError(
                f"{error} (where {told(numbers)}); if only some numbers are right, say so in the dynamic shapes: by "
                "multiples such as 32*height, by bounds (torch.export.Dim), or by fewer names"
            ) from error

    def _first_two(self, hints: Mapping[str, int], other: Mapping[str, int]) -> tuple[Conversion, Conversion]:
        """Conversions that have no constants of different shapes, if that can be."""
        first, second = self.convert(self._types_at(hints), self.varying), self._at(other)
        for _ in range(_ROUNDS):
            found = self.varying | _makers_of_varying(first, second)
            if found == self.varying:
                break
            self.varying = found
            try:
                first, second = (self.convert(self._types_at(one), found) for one in (hints, other))
            except TersorError as error:
                names = ", ".join(symbol.name for symbol in self.symbols)
                raise TersorError(
                    f"{error}; it works with fixed shapes, so leave out of the dynamic shapes ({names}) what it "
                    "depends on"
                ) from error
        return first, second

    def _check_least(self, graph: Graph) -> None:
        """Raise TersorError where outputs have other shapes with an extent of 1, which may be broadcast or left out."""
        hints = {symbol.name: symbol.hint for symbol in self.symbols}
        for symbol in self.symbols:
            numbers = hints | {symbol.name: max(symbol.least, 1)}
            if symbol.least >= _FEWEST:
                continue
            try:
                outputs = self.convert(self._types_at(numbers), self.varying).graph.outputs
            except TersorError:
                continue
            for index, (value, own) in enumerate(zip(graph.outputs, outputs, strict=True)):
                if _bound(value.type, numbers) != own.type:
                    raise TersorError(
                        f"{self.subject}: output number {index} is {value.type}, but {own.type} where {told(numbers)}; "
                        f"say that this is not asked for, by torch.export.Dim({symbol.name!r}, min=2)"
                    )


def _makers_of_varying(one: Conversion, other: Conversion) -> frozenset[str]:
    """Names of the nodes that make constants of different shapes, or numbers."""
    shapes = {name for name, shapes in one.constants.items() if other.constants.get(name, shapes) != shapes}
    for op, twin in zip(one.graph.ops, other.graph.ops, strict=False):
        if type(op) is not type(twin):
            break
        if isinstance(op, WeightOp) and not _same_weight(op, twin):
            shapes.add(op.location)
    return frozenset(shapes)


def _same_weight(op: Op, twin: Op) -> bool:
    assert op.graph is not None and twin.graph is not None
    own, other = op.graph.weights[op.attrs.id], twin.graph.weights[twin.attrs.id]
    if (own.shape, own.dtype) != (other.shape, other.dtype):
        return False
    if own.data_ptr() == other.data_ptr() and own.stride() == other.stride():
        return True
    return torch.equal(own, other) or op.graph.weights.digest(op.attrs.id) == twin.graph.weights.digest(twin.attrs.id)


def _bound(type: TensorType, numbers: Mapping[str, int]) -> TensorType:
    return type.with_shape(tuple(at(extent, numbers) for extent in type.shape))


# Assignments ------------------------------------------------------------------------------------------------------


def _assignments(symbols: Sequence[Symbol]) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Numbers near the hints, these first, in which all symbols vary independently; and larger ones."""
    hints = [symbol.hint for symbol in symbols]
    pools = [_neighbours(symbol) for symbol in symbols]
    count = max(_NEAR, len(symbols) + 1)
    for attempt in range(_ATTEMPTS):
        chance = random.Random(attempt)
        columns = [
            chance.sample(pool, count) if len(pool) >= count else [pool[0], *chance.choices(pool, k=count - 1)]
            for pool in pools
        ]
        rows = np.array(columns).T
        if np.linalg.matrix_rank(rows - np.array(hints)) == len(symbols):
            break
    else:
        shown = ", ".join(symbol.name for symbol in symbols)
        raise TersorError(f"the bounds of {shown} leave too few numbers to tell these extents apart; make some fixed")
    chance = random.Random(0)
    far = [[_larger(symbol, chance) for symbol in symbols] for _ in range(_FAR)]
    names = [symbol.name for symbol in symbols]
    near = [dict(zip(names, map(int, row), strict=True)) for row in (hints, *rows)]
    return near, [dict(zip(names, row, strict=True)) for row in far]


def _neighbours(symbol: Symbol) -> list[int]:
    """Numbers beside the hint, the nearest first."""
    first = max(symbol.least, _FEWEST, symbol.hint - _POOL)
    numbers = (number for number in range(first, symbol.hint + _POOL + 1) if number != symbol.hint)
    pool = sorted(filter(symbol.admits, numbers), key=lambda number: (abs(number - symbol.hint), -number))[:_POOL]
    if not pool:
        raise TersorError(f"extent {symbol.name} can only be {symbol.hint}; leave it out of the dynamic shapes")
    return pool


def _larger(symbol: Symbol, chance: random.Random) -> int:
    number = chance.randint(2 * symbol.hint, 5 * symbol.hint)
    return number if symbol.most is None else min(number, symbol.most)


# Graphs -----------------------------------------------------------------------------------------------------------


class _Union:
    """The graph that all of several graphs are, each at its assignment."""

    def __init__(
        self,
        graphs: Sequence[Graph],
        types: Types,
        symbols: Sequence[Symbol],
        assignments: Sequence[Mapping[str, int]],
    ) -> None:
        self.graphs, self.symbols, self.assignments = graphs, tuple(symbols), assignments
        self.formulas = FormulaTable(symbols, assignments)
        first = graphs[0]
        self.built = Graph(first.name, list(types.items()), first.weights.copy())
        self.values: dict[Value, Value] = dict(zip(first.inputs, self.built.inputs, strict=True))
        self.twins: list[dict[Value, Value]] = [dict(zip(one.inputs, first.inputs, strict=True)) for one in graphs]
        for value in self.built.inputs:
            self._note(value)

    def graph(self) -> Graph:
        first = self.graphs[0]
        for ops in zip_longest(*(graph.ops for graph in self.graphs)):
            self._check_alike(ops)
            self._add(ops)
        for index, outputs in enumerate(zip(*(graph.outputs for graph in self.graphs), strict=True)):
            if len({twins[value] for twins, value in zip(self.twins, outputs, strict=True)}) > 1:
                raise self._varies(f"output number {index}", 1, "is another value")
        self.built.outputs = tuple(self.values[value] for value in first.outputs)
        self.built.symbols, self.built.structure = self.symbols, first.structure
        return self.built

    def _check_alike(self, ops: Sequence[Op | None]) -> None:
        """Raise TersorError unless the ops are of one kind, and read the same values; note that these are the same."""
        op = ops[0]
        if op is None:
            index, more = next((index, other) for index, other in enumerate(ops) if other is not None)
            raise self._varies(more.describe(), index, "is needed")
        for index, other in enumerate(ops):
            if other is None or (type(other), other.location) != (type(op), op.location):
                raise self._varies(op.describe(), index, "is not there, or another op stands in its place,")
            twins = self.twins[index]
            operands = [None if value is None else twins[value] for value in other.operands]
            if operands != [*op.operands]:
                raise self._varies(op.describe(), index, "reads other values")
            if isinstance(op, WeightOp) and not _same_weight(op, other):
                raise self._varies(op.describe(), index, "holds other numbers")
            twins.update(zip(other.results, op.results, strict=True))

    def _varies(self, what: str, index: int, how: str) -> TersorError:
        one, other = (told(self.assignments[place]) for place in (0, index))
        return TersorError(
            f"{what} {how} where {other}, unlike where {one}; only extents may follow from the dynamic shapes, so "
            "leave out what it depends on, or let it be a multiple, such as 32*height"
        )

    def _add(self, ops: Sequence[Op]) -> None:
        op = ops[0]
        operands = tuple(None if value is None else self.values[value] for value in op.operands)
        attrs = self._attrs(op, [one.attrs for one in ops])
        try:
            added = self.built.append(type(op)(operands, attrs, location=op.location, rule=op.rule))
        except IRError as error:
            raise TersorError(
                f"{error}, which is true where {told(self.assignments[0])} and a few more, but does not follow; leave "
                "out of the dynamic shapes what it depends on"
            ) from error
        for index, old in enumerate(op.results):
            new = added.results[index]
            new.name = old.name
            for twin, numbers in zip(ops, self.assignments, strict=True):
                if _bound(new.type, numbers) != twin.results[index].type:
                    raise TersorError(
                        f"{op.describe()} gives {twin.results[index].type} where {told(numbers)}, which is not "
                        f"{new.type}; leave out of the dynamic shapes what it depends on"
                    )
            self.values[old] = new
            self._note(new)

    def _note(self, value: Value) -> None:
        for extent in filter(is_symbolic, value.shape):
            self.formulas.note(extent)

    # Attributes ---------------------------------------------------------------------------------------------------

    def _attrs(self, op: Op, attrs: Sequence[Attrs]) -> Attrs:
        changed = {}
        for name, own in attrs[0].items():
            try:
                merged = self._merged([getattr(one, name) for one in attrs])
            except _Unexplained as error:
                shown = ", ".join(map(str, error.args[0][:_SHOWN]))
                where = "; ".join(map(told, self.assignments[:_SHOWN]))
                raise TersorError(
                    f"{op.describe()}: its {name} is {shown}, … where {where}; …, for which there is no formula; leave "
                    "out of the dynamic shapes what it depends on"
                ) from None
            if merged is not own:
                changed[name] = merged
        return replace(attrs[0], **changed) if changed else attrs[0]

    def _merged(self, values: Sequence[Instance]) -> Instance:
        """What stands for an attribute's values at all assignments."""
        first = values[0]
        if all(one is first or one == first or repr(one) == repr(first) for one in values):
            return first
        if all(type(one) is int for one in values):
            found = self.formulas.find(tuple(values))
            if found is None:
                raise _Unexplained(values)
            return found
        if all(isinstance(one, tuple) and len(one) == len(first) for one in values):
            return tuple(map(self._merged, zip(*values, strict=True)))
        if all(isinstance(one, TensorType) for one in values):
            return first.with_shape(self._merged([one.shape for one in values]))
        raise _Unexplained(values)


class _Unexplained(Exception):
    """Values of an attribute that no formula gives."""
