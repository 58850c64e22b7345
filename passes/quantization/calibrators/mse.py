"""``mse``: the range with the least mean squared error, rounding inside and cutting off outside of it together.

The squared distance to the nearest of the integers' numbers has an antiderivative in closed form, so the mean over each
bin of the `histogram` is exact for numbers that are spread evenly in it. Both ends are cut to one magnitude first, the
best of eight in each octave; then each end is refined by itself. Banner et al., "Post training 4-bit quantization of
convolutional networks for rapid-deployment", NeurIPS 2019, where the distribution is assumed instead of counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .histogram import LEVELS, Distribution, HistogramCalibrator
from .registry import register_calibrator

_PER_OCTAVE = 8
_FACTORS = np.linspace(0.7, 1.3, 25).tolist()  # of an end, when it is refined
_ROUNDS = 2


@register_calibrator("mse")
@dataclass(frozen=True)
class MeanSquaredError(HistogramCalibrator):
    """The range with the least mean squared error."""

    def range_of(self, numbers: Distribution) -> tuple[float, float]:
        low, high = _best(numbers, [numbers.clipped(limit) for limit in numbers.limits(_PER_OCTAVE)])
        for _ in range(_ROUNDS):
            low, high = _best(numbers, [(low, min(high * factor, numbers.high)) for factor in _FACTORS])
            low, high = _best(numbers, [(max(low * factor, numbers.low), high) for factor in _FACTORS])
        return low, high


def _best(numbers: Distribution, ranges: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """That of some ranges with the least error; the widest of those that are equal."""
    errors = squared_errors(numbers, np.array(ranges))
    widest_first = sorted(range(len(ranges)), key=lambda index: ranges[index][0] - ranges[index][1])
    return ranges[min(widest_first, key=lambda index: errors[index])]


def squared_errors(numbers: Distribution, ranges: np.ndarray) -> np.ndarray:
    """Sums of squared errors, float64 [ranges], for ranges [ranges, 2] whose integers include one for zero."""
    low, high = np.minimum(ranges[:, :1], 0.0), np.maximum(ranges[:, 1:], 0.0)
    scale = np.maximum((high - low) / (LEVELS - 1), 1e-38)
    first = -np.round(-low / scale)
    last = first + LEVELS - 1
    lower, upper = (edge / scale for edge in numbers.seen_edges())
    width = upper - lower
    is_point = width <= 1e-9 * np.maximum(np.abs(upper), 1e-30)
    nearest = lower.round().clip(first, last)
    integral = _antiderivative(upper, first, last) - _antiderivative(lower, first, last)
    mean = np.where(is_point, (lower - nearest) ** 2, integral / np.where(is_point, 1.0, width))
    return (mean * scale**2) @ numbers.counts


def _antiderivative(steps: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Of the squared distance to the nearest integer between ``first`` and ``last``."""
    inside = steps.clip(first, last)
    nearest = inside.round()
    return nearest / 12 + (inside - nearest) ** 3 / 3 + (steps - inside) ** 3 / 3
