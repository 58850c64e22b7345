"""What calibrators share that look at the whole distribution: a histogram with logarithmic bins, in one pass.

A bin is the numbers that agree in sign, exponent and the first seven bits of the fraction, so it is 1/128 of its
magnitude wide at most, whether the numbers are around 1e-20 or around 1e20. Nothing needs to be known of the numbers in
advance, bins never have to be joined, and the memory is fixed: 512 KiB for each value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .registry import Calibrator, RangeObserver

_FRACTION_BITS = 7  # of the 23 of float32
_SHIFT = 23 - _FRACTION_BITS
_SIDE = 1 << (8 + _FRACTION_BITS)  # bins on each side of zero
LEVELS = 256  # numbers that 8 bits can tell apart


@dataclass(frozen=True)
class Distribution:
    """Counts of numbers in bins that do not overlap, in ascending order; empty ones are left out.

    Attributes
    ----------
    lower, upper
        float64 [bins]: edges.
    counts
        float64 [bins]: numbers in each.
    low, high
        Smallest and largest number of all.
    """

    lower: np.ndarray
    upper: np.ndarray
    counts: np.ndarray
    low: float
    high: float

    def seen_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the parts of the bins that lie between the smallest and the largest number."""
        return self.lower.clip(self.low, self.high), self.upper.clip(self.low, self.high)

    def mirrored(self) -> Distribution:
        """That of the negative numbers."""
        return Distribution(-self.upper[::-1], -self.lower[::-1], self.counts[::-1], -self.high, -self.low)

    def clipped(self, limit: float) -> tuple[float, float]:
        """The range of the numbers, cut to magnitudes up to ``limit``."""
        return max(self.low, -float(limit)), min(self.high, float(limit))

    def limits(self, per_octave: int) -> np.ndarray:
        """Magnitudes to cut at, descending from the largest to where nearly nothing would be left."""
        magnitudes = np.maximum(np.abs(self.lower), np.abs(self.upper))
        order = np.argsort(magnitudes)
        shares = np.cumsum(self.counts[order]) / self.counts.sum()
        largest = max(-self.low, self.high)
        if not largest:
            return np.zeros(1)
        smallest = float(magnitudes[order][np.searchsorted(shares, 0.5)])
        octaves = np.log2(largest / min(max(smallest, 1e-38), largest / 2))
        return largest * 2.0 ** (-np.arange(int(octaves * per_octave) + 1) / per_octave)


class Histogram:
    """Counts numbers batch by batch."""

    def __init__(self) -> None:
        self._counts = torch.zeros(2 * _SIDE, dtype=torch.int64)
        self._low, self._high = np.inf, -np.inf

    def observe(self, numbers: torch.Tensor) -> None:
        """Take in one batch."""
        low, high = torch.aminmax(numbers)
        self._low, self._high = min(self._low, low.item()), max(self._high, high.item())
        bits = numbers.detach().flatten().view(torch.int32)
        magnitudes = (bits & 0x7FFFFFFF) >> _SHIFT
        bins = torch.where(bits < 0, _SIDE - 1 - magnitudes, _SIDE + magnitudes)
        self._counts += torch.bincount(bins, minlength=2 * _SIDE)

    def distribution(self) -> Distribution:
        """What was seen, after at least one batch."""
        counts = self._counts.numpy()
        bins = np.flatnonzero(counts)
        lower, upper = (_edges(bins + offset) for offset in (0, 1))
        return Distribution(lower, upper, counts[bins].astype(np.float64), self._low, self._high)


def _edges(bins: np.ndarray) -> np.ndarray:
    """The lower edge of each bin; those next to zero, of numbers below 1e-40, end at zero."""
    places = np.abs(bins - _SIDE)
    magnitudes = (places << _SHIFT).astype(np.int32).view(np.float32).clip(max=np.finfo(np.float32).max)
    return np.where(bins < _SIDE, -1.0, 1.0) * np.where(places > 1, magnitudes, 0.0)


class HistogramCalibrator(Calibrator):
    """Base of the calibrators that choose a range from a distribution."""

    def observer(self) -> RangeObserver:
        return _OneRange(self)

    def range_of(self, numbers: Distribution) -> tuple[float, float]:
        """Smallest and largest number to be covered."""
        raise NotImplementedError


class SeveralRanges:
    """Ranges of several calibrators, by name, from one histogram: the layers that read the value choose."""

    def __init__(self, calibrators: Mapping[str, HistogramCalibrator]) -> None:
        self._calibrators = calibrators
        self._histogram = Histogram()

    def observe(self, numbers: torch.Tensor) -> None:
        """Take in one batch."""
        self._histogram.observe(numbers)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each."""
        numbers = self._histogram.distribution()
        return {name: calibrator.range_of(numbers) for name, calibrator in self._calibrators.items()}

    def range(self) -> tuple[float, float]:
        """A range that covers all of them."""
        lows, highs = zip(*self.ranges().values(), strict=True)
        return min(lows), max(highs)


class _OneRange:
    def __init__(self, calibrator: HistogramCalibrator) -> None:
        self._calibrator = calibrator
        self._histogram = Histogram()

    def observe(self, numbers: torch.Tensor) -> None:
        self._histogram.observe(numbers)

    def range(self) -> tuple[float, float]:
        return self._calibrator.range_of(self._histogram.distribution())
