"""Extents that are not known yet: whole numbers that carry a formula in symbols, for graphs of several shapes.

An `Extent` is an ``int``: the number that it has where every symbol has its hint. So type rules, converters and passes
compute with it as with any other, and what they compute is an `Extent` again, with the formula that follows. Two
extents are equal where their formulas are: this is decided by their numbers at a handful of assignments of the symbols
(witnesses), as polynomial identities are tested. An extent is never equal to a plain number. Other comparisons take the
hint. A formula is text in Python's syntax, for example ``2*batch`` or ``(height-1)//2+1``; `evaluate` reads it back.
"""

from __future__ import annotations

import ast
import functools
import operator
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, SupportsIndex, TypeVar

from .errors import IRError, shorten

NumberT = TypeVar("NumberT", bound=int)
Terms = Mapping[tuple[str, ...], int]  # coefficients of products of factors; the empty product is the constant

_WITNESSES = 6  # assignments beside the hints
_LARGEST_WITNESS = 1 << 20
_LONGEST_FORMULA = 2000  # characters
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_RELATION = re.compile(r"(?P<left>[\w+*/%() -]+)(?P<operator><=|<|==|!=)(?P<right>[\w+*/%() -]+)")
_RESERVED = frozenset({"inf", "nan", "true", "false", "none", "return", "body", "in"})


@dataclass(frozen=True)
class Relation:
    """What the extents of a call must satisfy together, as text: two formulas, compared, for example ``n<=2*batch``."""

    text: str

    def __post_init__(self) -> None:
        if not _RELATION.fullmatch(self.text):
            raise IRError(f"{shorten(repr(self.text))} is no relation of extents: two formulas, and <, <=, == or !=")

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbols in it."""
        return tuple(dict.fromkeys(_NAME.findall(self.text)))

    def holds(self, numbers: Mapping[str, int]) -> bool:
        """Whether it is true where symbols are ``numbers``."""
        match = _RELATION.fullmatch(self.text)
        assert match is not None
        return _RELATIONS[match["operator"]](evaluate(match["left"], numbers), evaluate(match["right"], numbers))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Symbol:
    """An extent of a graph's inputs that a call chooses.

    Attributes
    ----------
    name
        As in formulas.
    hint
        The number that passes assume where they need one; 2 or more.
    least, most
        Bounds of what calls may choose; ``most`` is None where there is none.
    relations
        What else must be true, of this symbol and those before it.
    """

    name: str
    hint: int
    least: int = 1
    most: int | None = None
    relations: tuple[Relation, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise IRError(f"{shorten(self.name)!r} is no name for an extent; use letters, digits and underscores")
        if self.least < 0 or not self.admits(self.hint):
            raise IRError(f"extent {self.name} is {self.hint}, which is not {self.bounds}")

    def admits(self, number: int) -> bool:
        """Whether calls may choose ``number``."""
        return self.least <= number and (self.most is None or number <= self.most)

    def elsewhere(self) -> Symbol:
        """The same symbol with another hint, if the bounds allow one."""
        others = (self.hint + 1, self.hint - 1)
        return replace(self, hint=next((one for one in others if one >= 2 and self.admits(one)), self.hint))

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"

    @property
    def extent(self) -> Extent:
        """The symbol as an extent; witnesses do not keep to the bounds, within which two symbols may hardly differ."""
        numbers = random.Random(self.name)
        return Extent(
            {(self.name,): 1}, (self.hint, *(numbers.randint(2, _LARGEST_WITNESS) for _ in range(_WITNESSES)))
        )

    def __str__(self) -> str:
        bounds = f"{self.name}={self.hint} in [{self.least},{'inf' if self.most is None else self.most}]"
        relations = " and ".join(f'"{relation}"' for relation in self.relations)
        return f"{bounds} where {relations}" if relations else bounds


class Extent(int):
    """A whole number with a formula; see the module.

    Parameters
    ----------
    terms
        The formula, a polynomial in symbols, quotients and remainders.
    numbers
        What it is at the hints and at each witness.
    """

    terms: Terms
    numbers: tuple[int, ...]

    def __new__(cls, terms: Terms, numbers: tuple[int, ...]) -> Extent:
        extent = super().__new__(cls, numbers[0])
        extent.terms, extent.numbers = terms, numbers
        return extent

    def __getnewargs__(self) -> tuple[Terms, tuple[int, ...]]:
        return self.terms, self.numbers

    @property
    def formula(self) -> str:
        """The formula as text, without spaces."""
        return _text(self.terms)

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the symbols in the formula."""
        return frozenset(_NAME.findall(self.formula))

    def __str__(self) -> str:
        return self.formula

    def __repr__(self) -> str:
        return self.formula

    def __format__(self, spec: str) -> str:
        return format(self.formula, spec) if not spec else format(int(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extent) and self.numbers == other.numbers

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.numbers)

    def __add__(self, other: int) -> int:
        return _combined(self, other, operator.add, _sum)

    def __sub__(self, other: int) -> int:
        return self + -other

    def __mul__(self, other: int) -> int:
        return _combined(self, other, operator.mul, _product)

    def __floordiv__(self, other: int) -> int:
        return _combined(self, other, operator.floordiv, _quotient)

    def __mod__(self, other: int) -> int:
        return _combined(self, other, operator.mod, _remainder)

    def __radd__(self, other: int) -> int:
        return self + other

    def __rsub__(self, other: int) -> int:
        return -self + other

    def __rmul__(self, other: int) -> int:
        return self * other

    def __rfloordiv__(self, other: int) -> int:
        return _combined(other, self, operator.floordiv, _quotient)

    def __rmod__(self, other: int) -> int:
        return _combined(other, self, operator.mod, _remainder)

    def __neg__(self) -> int:
        return self * -1

    def __pow__(self, exponent: int, modulus: int | None = None) -> int:  # type: ignore[override]
        if modulus is not None or isinstance(exponent, Extent) or exponent < 0:
            self._refuse()
        result = 1
        for _ in range(exponent):
            result = self * result
        return result

    def __truediv__(self, other: float) -> NoReturn:
        self._refuse()

    def __rtruediv__(self, other: float) -> NoReturn:
        self._refuse()

    def __float__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise IRError(f"it computes a number from the extent {self.formula}, which each call chooses; make that fixed")


def is_symbolic(number: object) -> bool:
    """Whether something is an extent that is not known yet."""
    return isinstance(number, Extent)


def plain(number: SupportsIndex) -> int:
    """An extent as a plain ``int`` or an `Extent`, whatever kind of whole number it was."""
    return number if isinstance(number, Extent) else int(number)


def evaluate(formula: str, numbers: Mapping[str, NumberT]) -> NumberT | int:
    """What a formula is where its symbols are ``numbers``.

    Raises
    ------
    IRError
        When it is no formula, names another symbol, or divides by zero.
    """
    if len(formula) > _LONGEST_FORMULA:
        raise IRError(f"the formula {shorten(formula)!r} of an extent is longer than {_LONGEST_FORMULA} characters")
    try:
        return _evaluated(_parsed(formula), numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise IRError(f"{shorten(formula)!r} is no extent: write a number or a formula such as 2*batch+1") from error


@functools.lru_cache(maxsize=4096)
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _evaluated(node: ast.expr, numbers: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand, numbers)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluated(node.left, numbers), _evaluated(node.right, numbers))
    if isinstance(node, ast.Name):
        if node.id not in numbers:
            known = ", ".join(numbers) or "none"
            raise IRError(f"no extent is called {shorten(node.id)!r}; known are: {known}")
        return numbers[node.id]
    raise ValueError("not a formula")


# Polynomials ----------------------------------------------------------------------------------------------------


def _combined(
    one: int, other: int, compute: Callable[[int, int], int], combine: Callable[[Terms, Terms], Terms]
) -> int:
    if not isinstance(one, int) or not isinstance(other, int):
        return NotImplemented
    count = len(one.numbers if isinstance(one, Extent) else other.numbers)  # type: ignore[attr-defined]
    pairs = zip(_numbers(one, count), _numbers(other, count), strict=True)
    terms = combine(_terms(one), _terms(other))
    numbers = tuple(compute(*pair) for pair in pairs)
    return Extent(terms, numbers) if terms.keys() - {()} else terms.get((), 0)


def _terms(number: int) -> Terms:
    return number.terms if isinstance(number, Extent) else {(): int(number)}


def _numbers(number: int, count: int) -> tuple[int, ...]:
    return number.numbers if isinstance(number, Extent) else (int(number),) * count


def _sum(one: Terms, other: Terms) -> Terms:
    keys = dict.fromkeys((*one, *other))
    total = {factors: one.get(factors, 0) + other.get(factors, 0) for factors in keys}
    return {factors: coefficient for factors, coefficient in total.items() if coefficient}


def _product(one: Terms, other: Terms) -> Terms:
    total: Terms = {}
    for left, scale in one.items():
        for right, by in other.items():
            total = _sum(total, {tuple(sorted((*left, *right))): scale * by})
    return total


def _quotient(one: Terms, other: Terms) -> Terms:
    """``one // other``; of a sum divided by a number, what that divides is taken out first."""
    divisor = other.get((), 0) if not other.keys() - {()} else None
    if divisor == 1:
        return one
    if divisor is None or divisor < 1:
        return {(): 1} if one == other else {(f"({_text(one)}//{_factor(other)})",): 1}
    whole = {factors: coefficient // divisor for factors, coefficient in one.items() if not coefficient % divisor}
    rest = {factors: coefficient for factors, coefficient in one.items() if coefficient % divisor}
    if not rest.keys() - {()}:
        return _sum(whole, {(): rest.get((), 0) // divisor})
    return _sum(whole, {(f"({_factor(rest)}//{divisor})",): 1})


def _remainder(one: Terms, other: Terms) -> Terms:
    divisor = other.get((), 0) if not other.keys() - {()} else 0
    if divisor and all(not coefficient % divisor for coefficient in one.values()):
        return {}
    return {(f"({_factor(one)}%{_factor(other)})",): 1}


def _factor(terms: Terms) -> str:
    text = _text(terms)
    return text if _NAME.fullmatch(text) or text.isdigit() else f"({text})"


def _text(terms: Terms) -> str:
    parts = []
    for factors, coefficient in sorted(terms.items(), key=lambda term: (not term[0], term[0])):
        product = "*".join(factors if abs(coefficient) == 1 and factors else (str(abs(coefficient)), *factors))
        parts.append(("-" if coefficient < 0 else "+") + product)
    return "".join(parts).removeprefix("+") or "0"
