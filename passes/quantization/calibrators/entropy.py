"""``entropy``: the range that loses least information, measured by the Kullback-Leibler divergence.

Integers tell only how many numbers each of them stands for, so their distribution is even within each step. The
divergence of the counted distribution from that one is compared between ranges; numbers outside of a range count as the
outermost ones inside. All ranges are compared on the same bins (`histogram`), so a range in which one step swallows
most numbers has a large divergence. Zeros are left out: an integer stands for them exactly. Method: Migacz, "8-bit
inference with TensorRT", GTC 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .histogram import LEVELS, Distribution, HistogramCalibrator
from .registry import register_calibrator

_PER_OCTAVE = 16
_TINY = 1e-30  # magnitudes below are zero
_LEAST = 1e-12  # probability


@register_calibrator("entropy")
@dataclass(frozen=True)
class Entropy(HistogramCalibrator):
    """The range with the least Kullback-Leibler divergence between the numbers and what integers tell of them."""

    def range_of(self, numbers: Distribution) -> tuple[float, float]:
        kept = (numbers.upper > _TINY) | (numbers.lower < -_TINY)
        some = Distribution(
            numbers.lower[kept],
            numbers.upper[kept],
            numbers.counts[kept],
            min(numbers.low, 0.0),
            max(numbers.high, 0.0),
        )
        if not kept.any():
            return numbers.low, numbers.high
        ranges = [some.clipped(limit) for limit in some.limits(_PER_OCTAVE)]
        low, high = min(ranges, key=lambda one: divergence(some, *one))
        return max(low, numbers.low), min(high, numbers.high)


def divergence(numbers: Distribution, low: float, high: float) -> float:
    """Kullback-Leibler divergence in nats, for integers from ``low`` to ``high``, of which one stands for zero."""
    scale = (high - low) / (LEVELS - 1)
    first = -round(-low / scale)
    borders = (np.arange(first, first + LEVELS + 1) - 0.5) * scale
    lower, upper = numbers.lower.clip(borders[0], borders[-1]), numbers.upper.clip(borders[0], borders[-1])
    share = (upper - lower) / (numbers.upper - numbers.lower)  # of each bin that is inside
    inside = np.flatnonzero(share > 0)
    if not inside.size:
        return np.inf
    counts = (numbers.counts * share)[inside]
    lower, upper = lower[inside], upper[inside]
    edges = np.stack([lower, upper], 1).ravel()
    below = np.repeat(np.cumsum(counts), 2) - np.stack([counts, np.zeros_like(counts)], 1).ravel()
    at_borders = np.interp(borders, edges, below)
    known = np.interp(upper, borders, at_borders) - np.interp(lower, borders, at_borders)
    folded = counts.copy()
    outside = numbers.counts * (1 - share)
    folded[0] += outside[: inside[0] + 1].sum()
    folded[-1] += outside[inside[-1] :].sum()
    p, q = folded / folded.sum(), np.maximum(known / counts.sum(), _LEAST)
    return float(np.sum(p * np.log(np.maximum(p, _LEAST) / q)))
