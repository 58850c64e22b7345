"""Graphs of several shapes: which numbers a call chooses for the symbols, and the graph for these numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product

from .core import Attrs, Op, Value
from .errors import TersorError
from .extents import Extent, Relation, Symbol, evaluate
from .foreign import Instance
from .graph import Graph
from .types import TensorType

Shape = Sequence[int]

_COMBINATIONS = 1000


def bind(graph: Graph, numbers: Mapping[str, int]) -> Graph:
    """The graph of fixed shapes, with weights shared, where its symbols are ``numbers``.

    Raises
    ------
    TersorError
        When a symbol has no number, or one outside of its bounds.
    IRError
        When an op does not fit these numbers; it names the op.
    """
    bound, _ = bind_with_map(graph, numbers)
    return bound


def bind_with_map(graph: Graph, numbers: Mapping[str, int]) -> tuple[Graph, dict[Op, Op]]:
    """`bind`, together with the map from the new graph's ops to those of ``graph``."""
    check_numbers(graph.symbols, numbers)
    return _Binding(numbers).graph(graph)


def check_numbers(symbols: Sequence[Symbol], numbers: Mapping[str, int]) -> None:
    """Raise TersorError unless each symbol has a number within its bounds, and nothing else has one."""
    names = ", ".join(symbol.name for symbol in symbols)
    for name in numbers:
        if all(symbol.name != name for symbol in symbols):
            raise TersorError(f"no extent is called {name!r}; the model's are: {names or 'none'}")
    for symbol in symbols:
        if symbol.name not in numbers:
            raise TersorError(f"extent {symbol.name} has no number; give one for each of: {names}")
        if not symbol.admits(numbers[symbol.name]):
            raise TersorError(f"{symbol.name} must be {symbol.bounds}, got {numbers[symbol.name]}")
    broken = _broken(symbols, numbers)
    if broken is not None:
        raise TersorError(f"the model is only right where {broken}, got {told(numbers)}")


def _broken(symbols: Sequence[Symbol], numbers: Mapping[str, int]) -> Relation | None:
    """The first relation that numbers do not satisfy."""
    relations = (relation for symbol in symbols for relation in symbol.relations)
    return next((relation for relation in relations if not relation.holds(numbers)), None)


def elsewhere(symbols: Sequence[Symbol]) -> dict[str, int]:
    """Numbers near the hints, other than these for as many symbols as bounds and relations allow: for comparisons."""
    best = {symbol.name: symbol.hint for symbol in symbols}
    choices = [(*_others(symbol), symbol.hint) for symbol in symbols]
    most = -1
    for numbers in islice(product(*choices), _COMBINATIONS):
        found = dict(zip(best, numbers, strict=True))
        changed = sum(symbol.hint != found[symbol.name] for symbol in symbols)
        if changed > most and _broken(symbols, found) is None:
            best, most = found, changed
        if most == sum(len(one) > 1 for one in choices):
            break
    return best


def _others(symbol: Symbol) -> Iterator[int]:
    """Numbers beside a hint, that of `Symbol.elsewhere` first."""
    near = dict.fromkeys((symbol.elsewhere().hint, symbol.hint + 2, symbol.hint - 1))
    return (number for number in near if number != symbol.hint and number >= 2 and symbol.admits(number))


def told(numbers: Mapping[str, int]) -> str:
    """Numbers of symbols in a message, for example ``batch=1, height=224``."""
    return ", ".join(f"{name}={number}" for name, number in numbers.items())


def hints(graph: Graph) -> dict[str, int]:
    """The numbers that passes assume for a graph's symbols."""
    return {symbol.name: symbol.hint for symbol in graph.symbols}


def at_hints(graph: Graph) -> Graph:
    """A graph of fixed shapes: itself if it is one, else bound to the numbers that passes assume."""
    return bind(graph, hints(graph)) if graph.symbols else graph


def fits(shape: Shape, declared: Shape) -> bool:
    """Whether a shape may be that of a tensor whose declared shape has symbols."""
    pairs = zip(shape, declared, strict=False)
    return len(shape) == len(declared) and all(isinstance(one, Extent) or one == number for number, one in pairs)


def numbers_of(
    symbols: Sequence[Symbol], inputs: Sequence[tuple[str, Shape]], shapes: Sequence[Shape]
) -> dict[str, int]:
    """What the shapes of a call's inputs choose for the symbols.

    Parameters
    ----------
    inputs
        Name and declared shape of each input.
    shapes
        Shape of each tensor that is given.

    Raises
    ------
    TersorError
        When a shape does not fit its declaration, two disagree about a symbol, or a number is out of bounds. The
        message names the input.
    """
    found: dict[str, tuple[int, str]] = {}
    for (name, declared), shape in zip(inputs, shapes, strict=True):
        if not fits(shape, declared):
            raise _misfit(symbols, name, declared, shape)
        for extent, number in zip(declared, shape, strict=True):
            if isinstance(extent, Extent):
                for variable, value in _solved(extent, number):
                    if at(extent, {variable: value}) != number:
                        raise _misfit(symbols, name, declared, shape)
                    found.setdefault(variable, (value, name))
    numbers = {variable: number for variable, (number, _) in found.items()}
    for symbol in symbols:
        if symbol.name not in numbers:
            raise TersorError(f"no input says what {symbol.name} is")
        if not symbol.admits(numbers[symbol.name]):
            raise TersorError(
                f"input {found[symbol.name][1]!r} has {symbol.name} = {numbers[symbol.name]}, "
                f"which must be {symbol.bounds}"
            )
    broken = _broken(symbols, numbers)
    if broken is not None:
        chosen = " and ".join(f"{one} = {numbers[one]} in input {found[one][1]!r}" for one in broken.symbols)
        raise TersorError(f"the model is only right where {broken}, but {chosen}")
    for (name, declared), shape in zip(inputs, shapes, strict=True):
        wanted = [at(extent, numbers) for extent in declared]
        if wanted != list(shape):
            chosen = ", ".join(f"{one} = {number} in input {where!r}" for one, (number, where) in found.items())
            raise TersorError(f"input {name!r} must have shape {wanted}, since {chosen}; got {list(shape)}")
    return numbers


def _misfit(symbols: Sequence[Symbol], name: str, declared: Shape, shape: Shape) -> TersorError:
    bounds = ", ".join(f"{symbol.name} {symbol.bounds}" for symbol in symbols)
    return TersorError(f"input {name!r} must have shape {list(declared)} ({bounds}), got {list(shape)}")


def _solved(extent: Extent, number: int) -> list[tuple[str, int]]:
    """The symbol that must have some value for ``extent`` to be ``number``, for a multiple of one symbol and a sum."""
    variable = [(factors, scale) for factors, scale in extent.terms.items() if factors]
    if len(variable) != 1 or len(variable[0][0]) != 1 or not variable[0][0][0].isidentifier():
        return []
    ((symbol,), scale) = variable[0]
    return [(symbol, (number - extent.terms.get((), 0)) // scale)]


def at(number: int, numbers: Mapping[str, int]) -> int:
    """An extent where symbols are ``numbers``."""
    return evaluate(number.formula, numbers) if isinstance(number, Extent) else number


class _Binding:
    def __init__(self, numbers: Mapping[str, int]) -> None:
        self.numbers = numbers

    def graph(self, graph: Graph) -> tuple[Graph, dict[Op, Op]]:
        inputs = [(value.name, self.type(value.type)) for value in graph.inputs]
        bound = Graph(graph.name, inputs, graph.weights.copy())
        values: dict[Value, Value] = dict(zip(graph.inputs, bound.inputs, strict=True))
        origins: dict[Op, Op] = {}
        for op in graph.ops:
            copy = self.op(op, values)
            bound.append(copy)
            origins[copy] = op
        bound.outputs = tuple(values[value] for value in graph.outputs)
        bound.states, bound.structure = graph.states, graph.structure
        return bound, origins

    def op(self, op: Op, values: dict[Value, Value]) -> Op:
        operands = tuple(None if value is None else values[value] for value in op.operands)
        body = None if op.body is None else self.graph(op.body)[0]
        copy = type(op)(operands, self.attrs(op.attrs), body=body, location=op.location, rule=op.rule)
        for old, new in zip(op.results, copy.results, strict=True):
            declared = self.type(old.type)
            if declared.logical != new.type.logical:
                chosen = ", ".join(f"{name} = {number}" for name, number in self.numbers.items())
                raise op.error(f"it gives {new.type} where {chosen}, not {declared}")
            new.name, new.type = old.name, declared
            values[old] = new
        return copy

    def attrs(self, attrs: Attrs) -> Attrs:
        changed = {name: new for name, old in attrs.items() if (new := self.attr(old)) is not old}
        return replace(attrs, **changed) if changed else attrs

    def attr(self, value: Instance) -> Instance:
        if isinstance(value, tuple):
            items = tuple(map(self.attr, value))
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        if isinstance(value, TensorType):
            return self.type(value) if value.symbolic else value
        return at(value, self.numbers) if isinstance(value, Extent) else value

    def type(self, type: TensorType) -> TensorType:
        return replace(type, shape=tuple(at(extent, self.numbers) for extent in type.shape))
