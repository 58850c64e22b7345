"""``entropy``: the range that loses least information, measured by the Kullback-Leibler divergence.

Integers tell only how many numbers each of them stands for, so their distribution is even within each step, over the
bins that are not empty. The divergence of the counted distribution from that one is compared between ranges; numbers
outside of a range count as the outermost ones inside. All ranges are compared on the same bins (`histogram`), so a
range in which one step swallows most numbers has a large divergence. Zeros are left out: an integer stands for them
exactly. Bins are joined to at least 1/512 of the magnitude that one number in a thousand exceeds: finer ones would
count against a range that numbers repeat, or lie close to zero, which hardly matters.

It may cut far more than ``mse`` where many numbers are the same, as those of a blank background: compare the two.
Method: Migacz, "8-bit inference with TensorRT", GTC 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .histogram import LEVELS, Distribution, HistogramCalibrator
from .registry import register_calibrator

_PER_OCTAVE = 16
_TINY = 1e-30  # magnitudes below are zero
_LEAST = 1e-12  # probability
_RARE = 0.001  # share of the numbers that are larger than what the smallest bin is measured by
_FINEST = 512  # bins to that magnitude


@register_calibrator("entropy")
@dataclass(frozen=True)
class Entropy(HistogramCalibrator):
    """The range with the least Kullback-Leibler divergence between the numbers and what integers tell of them."""

    def range_of(self, numbers: Distribution) -> tuple[float, float]:
        some = _coarser(numbers)
        if not some.counts.size:
            return numbers.low, numbers.high
        ranges = [some.clipped(limit) for limit in some.limits(_PER_OCTAVE)]
        low, high = min(ranges, key=lambda one: divergence(some, *one))
        return max(low, numbers.low), min(high, numbers.high)


def _coarser(numbers: Distribution) -> Distribution:
    """Without zeros, and with bins joined to at least the smallest width."""
    magnitudes = np.maximum(np.abs(numbers.lower), np.abs(numbers.upper))
    kept = magnitudes > _TINY
    lower, upper, counts, magnitudes = (one[kept] for one in (numbers.lower, numbers.upper, numbers.counts, magnitudes))
    if counts.size:
        order = np.argsort(magnitudes)
        shares = np.cumsum(counts[order]) / counts.sum()
        width = magnitudes[order][np.searchsorted(shares, 1 - _RARE)] / _FINEST
        cells = np.floor((lower + upper) / 2 / width)
        first = np.flatnonzero(np.diff(cells, prepend=-np.inf))
        last = np.append(first[1:], cells.size) - 1
        lower, upper, counts = lower[first], upper[last], np.add.reduceat(counts, first)
    return Distribution(lower, upper, counts, min(numbers.low, 0.0), max(numbers.high, 0.0))


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
    at_borders, room = (np.interp(borders, edges, _below(one)) for one in (counts, upper - lower))
    filled = np.cumsum(upper - lower)
    known = np.interp(filled, room, at_borders) - np.interp(filled - (upper - lower), room, at_borders)
    folded = counts.copy()
    outside = numbers.counts * (1 - share)
    folded[0] += outside[: inside[0] + 1].sum()
    folded[-1] += outside[inside[-1] :].sum()
    p, q = folded / folded.sum(), np.maximum(known / counts.sum(), _LEAST)
    return float(np.sum(p * np.log(np.maximum(p, _LEAST) / q)))


def _below(parts: np.ndarray) -> np.ndarray:
    """What is below the lower and below the upper edge of each bin, one after the other."""
    return np.repeat(np.cumsum(parts), 2) - np.stack([parts, np.zeros_like(parts)], 1).ravel()
