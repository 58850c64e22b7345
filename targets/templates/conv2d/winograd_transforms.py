"""The transforms of Winograd's minimal filtering F(m, 3), and the vector code that applies them.

For one tile of one channel: ``y = At [(G g Gt) * (Bt d B)] A`` with ``d`` the ``alpha x alpha`` input patch, ``g`` the
3 x 3 filter, ``*`` elementwise, ``alpha = m + 2`` (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
2016). The matrices come from the Cook-Toom construction: interpolation at ``alpha - 1`` points and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch

from ..base import Expr
from ..vector.builder import constant
from ..vector.vectors import in_register, lanes_of

Matrix = tuple[tuple[Fraction, ...], ...]

FILTER = 3
# Interpolation points for each m, infinity apart; all but zero are used with both signs. Wide tiles amplify
# rounding errors, by an amount that depends on the points (Barabasz et al., "Error Analysis and Improving the Accuracy
# of Winograd Convolution for Deep Neural Networks", 2020): 3/4 and 3/2 are four times as accurate as the usual 1 and 2.
POINTS = {
    2: (Fraction(0), Fraction(1)),
    3: (Fraction(3, 8), Fraction(5, 4)),
    4: (Fraction(0), Fraction(3, 4), Fraction(3, 2)),
    5: (Fraction(3, 8), Fraction(5, 6), Fraction(3, 2)),
    6: (Fraction(0), Fraction(1), Fraction(2), Fraction(1, 2)),
}
TILES = tuple(POINTS)
# Largest error of an output, divided by the largest output and by the square root of the number of input channels,
# measured on normally distributed inputs and weights and rounded up. Direct convolution has 5e-8.
ERROR = {2: 6e-8, 3: 1.2e-7, 4: 3e-7, 5: 6e-7, 6: 1.6e-6}


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m, 3).

    Attributes
    ----------
    input
        ``Bt``, alpha x alpha.
    filter
        ``G``, alpha x 3; it carries all divisions, so that they are done once, when weights are packed.
    output
        ``At``, m x alpha.
    """

    input: Matrix
    filter: Matrix
    output: Matrix


@cache
def transforms(m: int) -> Transforms:
    """The matrices for tiles of ``m`` outputs, one of :data:`TILES`."""
    if m not in TILES:
        raise ValueError(f"no Winograd transform F({m}, {FILTER}); m is one of {', '.join(map(str, TILES))}")
    points = [sign * point for point in POINTS[m] for sign in ((1, -1) if point else (1,))]
    others = {point: [other for other in points if other != point] for point in points}
    input_rows = [_monic(roots) for roots in others.values()] + [_monic(points)]
    filter_rows = [
        [point**power / math.prod(point - other for other in others[point]) for power in range(FILTER)]
        for point in points
    ]
    filter_rows.append(_at_infinity(FILTER))
    output_columns = [[point**power for power in range(m)] for point in points] + [_at_infinity(m)]
    alpha = len(points) + 1
    return Transforms(
        input=tuple((*row, *[Fraction(0)] * (alpha - len(row))) for row in input_rows),
        filter=tuple(map(tuple, filter_rows)),
        output=tuple(zip(*output_columns, strict=True)),
    )


def relative_error(m: int, channels: int) -> float:
    """The error to expect of F(m, 3) in float32, relative to the largest output, after a sum over ``channels``."""
    return ERROR[m] * math.sqrt(channels)


def as_tensor(matrix: Matrix) -> torch.Tensor:
    """A matrix in float64."""
    return torch.tensor([[float(entry) for entry in row] for row in matrix], dtype=torch.float64)


def _monic(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest power first, of the polynomial with these roots and leading coefficient 1."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * entry for entry in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _at_infinity(length: int) -> list[Fraction]:
    """The leading coefficient of a polynomial is its value at infinity."""
    return [Fraction(0)] * (length - 1) + [Fraction(1)]


def apply_transform(matrix: Matrix, vectors: Sequence[Expr]) -> list[Expr]:
    """Write code for ``matrix @ vectors``; returns one vector a row.

    The points ±a make pairs of columns, or of rows, that are each other with some signs flipped. A pair of columns (of
    the output transform) becomes one sum and one difference first; a pair of rows (of the input transform) is computed
    as sum and difference of an even and an odd half.
    """
    matrix, vectors = _pair_columns(matrix, vectors)
    results: dict[int, Expr] = {}
    for row, entries in enumerate(matrix):
        if row in results:
            continue
        partner = next((r for r in range(row + 1, len(matrix)) if _is_pair(entries, matrix[r])), None)
        if partner is None:
            scale, value = _combine(_nonzero(entries), vectors)
            results[row] = in_register(_scaled(scale, value))
            continue
        even, odd = _halves(entries, matrix[partner])
        even_scale, even_value = _combine(even, vectors)
        odd_scale, odd_value = _combine(odd, vectors)
        even_value, odd_value = in_register(_scaled(even_scale, even_value)), in_register(odd_value)
        results[row] = in_register(even_value + _scaled(odd_scale, odd_value))
        results[partner] = in_register(even_value - _scaled(odd_scale, odd_value))
    return [results[row] for row in range(len(matrix))]


def _pair_columns(matrix: Matrix, vectors: Sequence[Expr]) -> tuple[Matrix, list[Expr]]:
    columns = list(zip(*matrix, strict=True))
    values = list(vectors)
    done: set[int] = set()
    for first in range(len(columns)):
        for second in range(first + 1, len(columns)):
            if not done & {first, second} and _is_pair(columns[first], columns[second]):
                done |= {first, second}
                even, odd = _halves(columns[first], columns[second])
                columns[first] = tuple(even.get(row, Fraction(0)) for row in range(len(matrix)))
                columns[second] = tuple(odd.get(row, Fraction(0)) for row in range(len(matrix)))
                a, b = values[first], values[second]
                values[first], values[second] = in_register(a + b), in_register(a - b)
    return tuple(zip(*columns, strict=True)), values


def _is_pair(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """Whether ``a`` and ``b`` agree up to signs, which differ in some entries and not in others."""
    even, odd = _halves(a, b)
    return bool(even) and bool(odd) and not even.keys() & odd.keys()


def _halves(a: Sequence[Fraction], b: Sequence[Fraction]) -> tuple[dict[int, Fraction], dict[int, Fraction]]:
    even = _nonzero([(x + y) / 2 for x, y in zip(a, b, strict=True)])
    odd = _nonzero([(x - y) / 2 for x, y in zip(a, b, strict=True)])
    return even, odd


def _nonzero(entries: Sequence[Fraction]) -> dict[int, Fraction]:
    return {index: entry for index, entry in enumerate(entries) if entry}


def _combine(terms: Mapping[int, Fraction], vectors: Sequence[Expr]) -> tuple[Fraction, Expr]:
    """``sum(coefficient * vector)`` as ``scale * value``: one multiply-add for each term but the first."""
    first = next((index for index, coefficient in terms.items() if coefficient == 1), max(terms))
    scale, value = terms[first], vectors[first]
    for index, coefficient in terms.items():
        if index != first:
            value = _add_scaled(value, coefficient / scale, vectors[index])
    return scale, value


def _add_scaled(value: Expr, coefficient: Fraction, vector: Expr) -> Expr:
    if coefficient < 0:
        return value - _scaled(-coefficient, vector)
    return value + _scaled(coefficient, vector)


def _scaled(scale: Fraction, value: Expr) -> Expr:
    return value if scale == 1 else value * constant(float(scale), lanes_of(value))
