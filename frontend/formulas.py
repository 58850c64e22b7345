"""Formulas of numbers that are known at several assignments of the symbols only.

Where code computes extents with plain numbers, it is run at several assignments, and what it gives is explained: as an
extent that is known already, as a product of these, a line on one, or a quotient rounded down. Of [batch, 8, h, w],
for example, 64, 96 and 160 may turn out to be ``4*h``. Lines are found by their direction: the differences of their
numbers, divided by what divides all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ..ir import Symbol, is_symbolic
from ..ir.binding import at

Numbers = tuple[int, ...]  # what an extent is at each assignment

_LARGEST_DIVISOR, _LARGEST_FACTOR = 64, 4
_SMALL_DIVISOR = 8  # of a multiple, and of what anything may be added to, as the paddings of windows are
_FEWEST_VALUES = 4  # different ones, before a quotient is looked for: more would fit fewer


class FormulaTable:
    """The extents of a graph so far, and what may be computed from them.

    Parameters
    ----------
    symbols
        They are known from the start.
    assignments
        Numbers of all symbols; the first ones are their hints.
    """

    def __init__(self, symbols: Sequence[Symbol], assignments: Sequence[Mapping[str, int]]) -> None:
        self._assignments = tuple(assignments)
        self._known: dict[Numbers, int] = {}
        self._lines: dict[Numbers, tuple[int, ...]] = {}  # factors of a product, by its direction
        for symbol in symbols:
            self.note(symbol.extent)

    def numbers(self, extent: int) -> Numbers:
        """What an extent is at each assignment."""
        return tuple(at(extent, assignment) for assignment in self._assignments)

    def note(self, extent: int) -> None:
        """Say that a graph has an extent, which others may follow from."""
        if not is_symbolic(extent):
            return
        numbers = self.numbers(extent)
        if numbers in self._known or len(set(numbers)) == 1:
            return
        self._known[numbers] = extent
        self._lines.setdefault(_direction(numbers), (extent,))
        for others, other in self._known.items():
            product = tuple(map(math.prod, zip(numbers, others, strict=True)))
            self._lines.setdefault(_direction(product), (extent, other))

    def find(self, numbers: Numbers) -> int | None:
        """What is ``numbers`` at the assignments: a plain number, an `Extent`, or None if nothing explains them."""
        if len(set(numbers)) == 1:
            return numbers[0]
        found = self._simple(numbers)
        if found is None:
            found = self._product(numbers)
        return self._quotient(numbers) if found is None else found

    def _simple(self, numbers: Numbers) -> int | None:
        """A known extent, or a line on one or on a product of two."""
        if len(set(numbers)) == 1:
            return numbers[0]
        if numbers in self._known:
            return self._known[numbers]
        factors = self._lines.get(_direction(numbers))
        if factors is None:
            return None
        product = math.prod(factors)
        own = self.numbers(product)
        index = next(index for index, number in enumerate(numbers) if number != numbers[0])
        slope = Fraction(numbers[index] - numbers[0], own[index] - own[0])
        offset = numbers[0] * slope.denominator - own[0] * slope.numerator
        return (product * slope.numerator + offset) // slope.denominator

    def _product(self, numbers: Numbers) -> int | None:
        """A known extent times something simple."""
        for own, extent in self._known.items():
            if all(one and not number % one for number, one in zip(numbers, own, strict=True)):
                rest = self._simple(tuple(number // one for number, one in zip(numbers, own, strict=True)))
                if rest is not None:
                    return extent * rest
        return None

    def _quotient(self, numbers: Numbers) -> int | None:
        """``(factor * extent + offset) // divisor``, where the numbers leave no doubt of the offset."""
        if len(set(numbers)) < _FEWEST_VALUES:
            return None
        for divisor in range(2, _LARGEST_DIVISOR + 1):
            for factor in range(1, _LARGEST_FACTOR + 1 if divisor <= _SMALL_DIVISOR else 2):
                for own, extent in self._known.items():
                    pairs = [(divisor * number, factor * one) for number, one in zip(numbers, own, strict=True)]
                    least = max(scaled - one for scaled, one in pairs)
                    most = min(scaled + divisor - 1 - one for scaled, one in pairs)
                    offset = _offset(least, most, divisor)
                    if offset is not None:
                        return (extent * factor + offset) // divisor
        return None


def _direction(numbers: Numbers) -> Numbers:
    """The same for all numbers on one line ``scale * x + offset``."""
    steps = [number - numbers[0] for number in numbers[1:]]
    scale = math.gcd(*steps) or 1
    first = next((step for step in steps if step), 1)
    return tuple(step // (scale if first > 0 else -scale) for step in steps)


def _offset(least: int, most: int, divisor: int) -> int | None:
    """What is added before a division, from ``least`` to ``most``: what rounds down, or up, or the only number."""
    if least == most and divisor <= _SMALL_DIVISOR:
        return least
    usual = [offset for offset in range(least, most + 1) if offset % divisor in (0, divisor - 1)]
    return usual[0] if len(usual) == 1 else None
