"""Extents of a program in a file that vary: read by a grammar of our own, without sympy's parser.

The file writes each of them as text in sympy's constructors, for example ``Mul(Integer(2), Symbol('s60', …))``, which
PyTorch evaluates. None of that text is passed on: PyTorch builds the program for the numbers of the example, which
`program_json` reads in the formulas' place. Only the formulas of inputs are read at all, which are sums and products
of whole numbers and symbols. Symbols of our own stand for these, and all other extents follow from the inputs', call
by call (`recompute`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add, mul
from typing import TypeVar

from torch._export.serde import schema

from ..ir import Symbol, TersorError, shorten
from ..ir.foreign import Json
from .program_json import AGAIN, INT64, damaged

NumberT = TypeVar("NumberT")
Range = tuple[int | None, int | None]

_LONGEST = 500  # characters of a formula
_SYMBOL = re.compile(r"s[0-9]{1,9}")
_FEWEST = 2  # extents below are constants to PyTorch
_COMBINED = {"Add": add, "Mul": mul}


@dataclass(frozen=True)
class Combined:
    """A sum or a product (``"Add"`` or ``"Mul"``)."""

    kind: str
    operands: tuple[Formula, ...]


Formula = int | str | Combined  # a number, the name of a symbol, or what is made of these


@dataclass(frozen=True)
class DynamicInputs:
    """What varies in the inputs of a program.

    Attributes
    ----------
    symbols
        By name, in the order of the inputs.
    layouts
        Sizes and strides of each input that has any symbols, by its name.
    conditions
        What else shapes must satisfy, as the file writes it: text that is never evaluated (see `conditions`).
    """

    symbols: Mapping[str, Symbol]
    layouts: Mapping[str, tuple[tuple[Formula, ...], tuple[Formula, ...]]]
    conditions: tuple[str, ...]


def read_dynamic_inputs(record: schema.ExportedProgram, data: Json) -> DynamicInputs | None:
    """The dynamic inputs of a program; None if the shapes of all inputs are fixed.

    Parameters
    ----------
    record, data
        The program as `program_json.read_program` returns it, and the JSON that it was read from.

    Raises
    ------
    TersorError
        When an extent is no sum or product, numbers contradict each other, or a symbol has no bounds.
    """
    values = data["graph_module"]["graph"]["tensor_values"]
    layouts, numbers = {}, {}
    for spec in record.graph_module.signature.input_specs:
        if spec.type == "user_input" and spec.user_input.arg.type == "as_tensor":
            name = spec.user_input.arg.as_tensor.name
            sizes, strides = (tuple(map(_formula, values[name][field])) for field in ("sizes", "strides"))
            if any(map(_symbols_of, (*sizes, *strides))):
                layouts[name] = sizes, strides
                numbers[name] = [[_hint(size) for size in values[name][field]] for field in ("sizes", "strides")]
    if not layouts:
        return None
    hints = _hints([pair for name in layouts for pair in zip(layouts[name][0], numbers[name][0], strict=True)])
    for name, formulas in layouts.items():
        unknown = {symbol for part in formulas for one in part for symbol in _symbols_of(one)} - hints.keys()
        if unknown:
            raise TersorError(f"has a symbol {min(unknown)} that is no extent of an input; {AGAIN}")
        if [[evaluate(one, hints) for one in part] for part in formulas] != numbers[name]:
            raise damaged(f"the shape of {name} is not that of its symbols")
    ranges = _ranges(data)
    symbols = {name: _symbol(name, hint, ranges) for name, hint in hints.items()}
    return DynamicInputs(symbols, layouts, (*_conditions(ranges), *_guards(data)))


def evaluate(formula: Formula, numbers: Mapping[str, NumberT]) -> NumberT | int:
    """What a formula is where its symbols are ``numbers``, or anything else that is added and multiplied."""
    if isinstance(formula, Combined):
        return reduce(_COMBINED[formula.kind], (evaluate(one, numbers) for one in formula.operands))
    return numbers[formula] if isinstance(formula, str) else formula


def _symbols_of(formula: Formula) -> tuple[str, ...]:
    names = _names(formula)
    return tuple(dict.fromkeys(names))


def _names(formula: Formula) -> Iterator[str]:
    if isinstance(formula, Combined):
        for one in formula.operands:
            yield from _names(one)
    elif isinstance(formula, str):
        yield formula


# Text -------------------------------------------------------------------------------------------------------------


def _formula(size: Json) -> Formula:
    """One extent or stride; `program_json` has looked at its form."""
    if "as_int" in size:
        return int(size["as_int"])
    text = size["as_expr"]["expr_str"]
    if len(text) > _LONGEST:
        raise _no_formula(text)
    try:
        return _parsed(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _no_formula(text) from error


def _parsed(node: ast.expr, text: str) -> Formula:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise _no_formula(text)
    kind, arguments = node.func.id, node.args
    if kind in _COMBINED and arguments and not node.keywords:
        return Combined(kind, tuple(_parsed(one, text) for one in arguments))
    if kind == "Integer" and len(arguments) == 1 and not node.keywords:
        return _integer(arguments[0], text)
    if kind == "Symbol" and len(arguments) == 1 and all(map(_is_assumption, node.keywords)):
        name = getattr(arguments[0], "value", None)
        if isinstance(name, str) and _SYMBOL.fullmatch(name):
            return name
    raise _no_formula(text)


def _integer(node: ast.expr, text: str) -> int:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_integer(node.operand, text)
    if not isinstance(node, ast.Constant) or type(node.value) is not int or node.value >= INT64:
        raise _no_formula(text)
    return node.value


def _is_assumption(keyword: ast.keyword) -> bool:
    is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
    return is_true and keyword.arg in ("positive", "integer")


def _no_formula(text: str) -> TersorError:
    return TersorError(
        f"has an input with an extent {shorten(repr(text))}, which is not made of sums and products of whole numbers "
        "and symbols; export it with dynamic_shapes of torch.export.Dim and multiples of it"
    )


# Numbers ----------------------------------------------------------------------------------------------------------


def _hint(size: Json) -> int:
    return int(size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"])


def _hints(sizes: Sequence[tuple[Formula, int]]) -> dict[str, int]:
    """The number of each symbol in the example, from the sizes that are linear in one symbol."""
    hints: dict[str, int] = {}
    for formula, number in sizes:
        symbols = _symbols_of(formula)
        if len(symbols) != 1:
            continue
        offset, one, two = (evaluate(formula, {symbols[0]: value}) for value in range(3))
        scale = one - offset
        if scale and two - one == scale and (number - offset) % scale == 0:
            hints.setdefault(symbols[0], (number - offset) // scale)
    return hints


def _symbol(name: str, hint: int, ranges: Mapping[str, Range]) -> Symbol:
    if name not in ranges:
        raise damaged(f"symbol {name} has no bounds")
    if hint < _FEWEST:
        raise damaged(f"symbol {name} is {hint} in the example")
    least, most = ranges[name]
    return Symbol(name, hint, max(least or 0, 0), most)


def _ranges(data: Json) -> dict[str, Range]:
    """Bounds by symbol, or by the text of what is computed from symbols."""
    ranges = {}
    for key, bounds in data["range_constraints"].items():
        least, most = bounds["min_val"], bounds["max_val"]
        if not all(one is None or (type(one) is int and abs(one) < INT64) for one in (least, most)):
            raise damaged(f"the bounds of {shorten(key)} are no numbers")
        ranges[key] = least, most
    return ranges


def _conditions(ranges: Mapping[str, Range]) -> Iterator[str]:
    """Bounds of what is computed from symbols, as conditions."""
    for key, (least, most) in ranges.items():
        if not _SYMBOL.fullmatch(key):
            yield from ([] if least is None else [f"({key}) >= {least}"])
            yield from ([] if most is None else [f"({key}) <= {most}"])


def _guards(data: Json) -> list[str]:
    guards = data.get("guards_code", [])
    if not isinstance(guards, list) or not all(isinstance(one, str) for one in guards):
        raise damaged("its conditions are no texts")
    return guards
