"""Chebyshev series of smooth functions, from PyTorch's own numbers in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ...ir import DType
from ..expressions import Expression

Numbers = npt.NDArray[np.float64]
_DEGREE = 40


def smallest_of(dtype: DType) -> float:
    """Below what coefficients do not count in an element type."""
    return 1e-17 if dtype is DType.F64 else 1e-9


@functools.cache
def fitted(function: Callable[[Numbers], Numbers], smallest: float) -> tuple[float, ...]:
    """Chebyshev coefficients of a function on [-1, 1], up to the last one of at least ``smallest``."""
    # The points at which NumPy's interpolation takes a function; its stubs want a function of single numbers.
    points = np.polynomial.chebyshev.chebpts1(_DEGREE + 1)
    found = np.polynomial.chebyshev.chebfit(points, function(points), _DEGREE)
    return tuple(map(float, found[: np.flatnonzero(abs(found) > smallest)[-1] + 1]))


def chebyshev(t: Expression, coefficients: Sequence[float]) -> Expression:
    """The sum of Chebyshev polynomials of ``t`` in [-1, 1], by Clenshaw's recurrence."""
    double = t + t
    last, before = t.number(coefficients[-1]), t.number(0.0)
    for coefficient in reversed(coefficients[1:-1]):
        last, before = double * last - before + coefficient, last
    return t * last - before + coefficients[0]
