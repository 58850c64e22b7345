"""Conditions on extents that PyTorch found while it traced a model: its guards, which are read and never run.

Where a model asks ``if x.shape[1] % 2 == 0:``, the program holds one of its branches only, and PyTorch keeps the
condition as text, for example ``(L['x'].size()[1] % 2) == 0``. A graph has bounds for its symbols, and
relations between them that calls are checked for, such as ``x.shape[0] <= y.shape[0]``. All other conditions must hold
for all shapes within these. This is tried at many of them, the smallest among them, since a condition on whole numbers
that fails anywhere nearly always fails there.
"""

from __future__ import annotations

import ast
import math
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec

from ..ir import Relation, Symbol, TersorError, shorten
from ..ir.binding import at
from ..ir.foreign import UserObject
from .symbols import Symbols

CONDITIONS = "tersor_conditions"  # in the metadata of a program that was read from a file, which has no guards

_LONGEST, _MOST = 2000, 1000  # characters of a condition, and how many there may be
_SMALLEST = 40  # shapes that are tried for each symbol, from its least number on
_RANDOM, _LARGEST = 60, 5000  # shapes in which all symbols are random, and the largest numbers there

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_RELATIONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: "<",
    ast.GtE: "<=",
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "IntInfinity": lambda: math.inf}


def relations_of(program: ExportedProgram, symbols: Symbols) -> tuple[Relation, ...]:
    """The conditions of a program that relate several symbols, where shapes within the bounds may violate them.

    Raises TersorError unless shapes within the bounds, which satisfy these, satisfy all other conditions.
    """
    if not symbols.symbols:
        return ()
    texts = program.graph_module.meta.get(CONDITIONS)
    texts = [*program._guards_code, *_computed_bounds(program)] if texts is None else texts
    if len(texts) > _MOST:
        raise TersorError(f"the program has more than {_MOST} conditions on its shapes")
    names = _names(program, symbols) if texts else {}
    conditions = [_Condition(text, names) for text in texts]
    assignments = list(_assignments(symbols.symbols))
    violated = [one for one in conditions if not all(map(one.holds, assignments))]
    found = {condition: condition.relation(symbols.symbols) for condition in violated}
    relations = tuple(dict.fromkeys(relation for relation in found.values() if relation is not None))
    if _leave_all_free(symbols, relations):
        violated = [condition for condition in violated if found[condition] is None]
        assignments = [numbers for numbers in assignments if all(one.holds(numbers) for one in relations)]
    for numbers in assignments:
        for condition in violated:
            if not condition.holds(numbers):
                where = ", ".join(f"{name}={number}" for name, number in numbers.items())
                raise TersorError(
                    f"the program is only right where {condition}, but its bounds also admit {where}; export it with "
                    "dynamic_shapes that say so, such as 2*Dim('n') for even numbers, or Dim('n', min=4)"
                )
    return relations


def _leave_all_free(symbols: Symbols, relations: Sequence[Relation]) -> bool:
    """Whether relations hold for the hints, and for others in which no symbol has its hint: such as ``n<=m``."""
    hints = {symbol.name: symbol.hint for symbol in symbols.symbols}
    others = symbols.related(relations).elsewhere().symbols
    varied = all(one.hint != hints[one.name] or one.elsewhere().hint == one.hint for one in others)
    return varied and all(relation.holds(hints) for relation in relations)


def _computed_bounds(program: ExportedProgram) -> Iterator[str]:
    """Bounds of what is computed from symbols."""
    for formula, bounds in program.range_constraints.items():
        if not formula.is_Symbol:
            yield from (f"({formula}) >= {bounds.lower}" for _ in range(bounds.lower.is_Integer))
            yield from (f"({formula}) <= {bounds.upper}" for _ in range(bounds.upper.is_Integer))


def _assignments(symbols: Sequence[Symbol]) -> Iterator[dict[str, int]]:
    """Numbers for all symbols, within their bounds."""
    hints = {symbol.name: symbol.hint for symbol in symbols}
    yield hints
    limits = {symbol.name: symbol.least + _LARGEST if symbol.most is None else symbol.most for symbol in symbols}
    for symbol in symbols:
        last = min(symbol.least + _SMALLEST, limits[symbol.name])
        yield from (hints | {symbol.name: number} for number in (*range(symbol.least, last + 1), limits[symbol.name]))
    chance = random.Random(0)
    for _ in range(_RANDOM):
        yield {symbol.name: chance.randint(symbol.least, limits[symbol.name]) for symbol in symbols}


def _names(program: ExportedProgram, symbols: Symbols) -> dict[str, UserObject]:
    """What names in conditions stand for: the inputs as ``L``, and PyTorch's symbols."""
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    inputs = [nodes[spec.arg.name].meta["val"] for spec in program.graph_signature.input_specs if spec.target is None]
    shapes = [_Shape(symbols.shape(value.shape)) if isinstance(value, torch.Tensor) else value for value in inputs]
    positional, keyword = _nested(program.call_spec.in_spec, iter(shapes))
    entry = program.module_call_graph[0].signature
    names = (entry and entry.forward_arg_names) or ()
    given = {**dict(zip(names, positional, strict=False)), **keyword, "flat_args": shapes}
    return {"L": given, **symbols.by_torch_name}


def _nested(spec: TreeSpec, leaves: Iterator[UserObject]) -> UserObject:
    """Leaves in dicts and lists; objects of other classes are lists of their parts."""
    if spec.is_leaf():
        return next(leaves)
    parts = [_nested(child, leaves) for child in spec.children()]
    return dict(zip(spec.context, parts, strict=True)) if spec.type is dict else parts


class _Shape(tuple[int, ...]):
    """The shape of an input."""


class _Condition:
    """A condition, which text of any kind may claim to be."""

    def __init__(self, text: str, names: Mapping[str, UserObject]) -> None:
        self.text, self.names = text, names
        try:
            if len(text) > _LONGEST:
                raise ValueError("too long")
            self.tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._unknown() from error

    def __str__(self) -> str:
        """As users would write it."""
        text = re.sub(r"L\['(\w+)'\]", r"\1", self.text)
        return shorten(text.replace(".size()", ".shape"), 120)

    def holds(self, numbers: Mapping[str, int]) -> bool:
        """Whether it does where symbols are ``numbers``; raises TersorError if it is no condition on shapes."""
        try:
            return bool(self._number(self.tree, numbers))
        except ZeroDivisionError:
            return False
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise self._unknown() from error

    def relation(self, symbols: Sequence[Symbol]) -> Relation | None:
        """The condition in formulas of several symbols, if it compares two of them."""
        calls = any(isinstance(node, ast.Call) and isinstance(node.func, ast.Name) for node in ast.walk(self.tree))
        if calls or not isinstance(self.tree, ast.Compare) or len(self.tree.ops) != 1:
            return None
        kind, extents = type(self.tree.ops[0]), {symbol.name: symbol.extent for symbol in symbols}
        left, right = (self._number(side, extents) for side in (self.tree.left, self.tree.comparators[0]))
        if kind in (ast.Gt, ast.GtE):
            left, right = right, left
        relation = Relation(f"{left}{_RELATIONS[kind]}{right}")
        return relation if len(relation.symbols) > 1 else None

    def _unknown(self) -> TersorError:
        return TersorError(
            f"the program has a condition on its shapes that is not understood ({self}); export it with other "
            "dynamic_shapes"
        )

    def _number(self, node: ast.expr, numbers: Mapping[str, int]) -> float:
        compute = partial(self._number, numbers=numbers)
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.UnaryOp(op=ast.USub()):
                return -compute(node.operand)
            case ast.UnaryOp(op=ast.Not()):
                return not compute(node.operand)
            case ast.BinOp() if type(node.op) in _BINARY:
                return _BINARY[type(node.op)](compute(node.left), compute(node.right))
            case ast.BoolOp():
                return (all if isinstance(node.op, ast.And) else any)(map(compute, node.values))
            case ast.Compare() if all(type(one) in _COMPARISONS for one in node.ops):
                operands = [*map(compute, (node.left, *node.comparators))]
                pairs = zip(node.ops, operands[:-1], operands[1:], strict=True)
                return all(_COMPARISONS[type(one)](left, right) for one, left, right in pairs)
            case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS and not node.keywords:
                return _FUNCTIONS[name](*map(compute, node.args))
            case ast.Name(id=name) if isinstance(self.names[name], int):
                return at(self.names[name], numbers)
            case ast.Subscript(value=ast.Call(func=ast.Attribute(value=source, attr="size"), args=[], keywords=[])):
                shape, axis = self._input(source), ast.literal_eval(node.slice)
                if isinstance(shape, _Shape):
                    return at(shape[axis], numbers)
        raise ValueError("no condition on shapes")

    def _input(self, node: ast.expr) -> UserObject:
        """The input, or the list or dict of them, that is called ``L['x']`` or ``L['x'][1]['k']``."""
        match node:
            case ast.Name(id="L"):
                return self.names["L"]
            case ast.Subscript(value=source, slice=ast.Constant(value=key)):
                container = self._input(source)
                if container is self.names["L"] and key not in container:  # the items of `*key` have names of their own
                    return {index: container.get(f"{key!s}_{index}") for index in range(len(container))}
                return container[key]
        raise ValueError("no input")
