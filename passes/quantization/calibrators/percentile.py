"""``percentile``: a few extreme numbers are cut off, so that the steps between integers become finer for all others.

At least one number is cut off at each end, whatever its size, unless the percentage is 100 or nothing would be left
(nearly all numbers are zero, for example). The end of the range is as near
to the number that it stands for as a bin of the `histogram` is wide: 1/128 of its magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .histogram import Distribution, HistogramCalibrator
from .registry import register_calibrator


@register_calibrator("percentile")
@dataclass(frozen=True)
class Percentile(HistogramCalibrator):
    """All but the smallest and the largest numbers.

    Attributes
    ----------
    percent
        Share of the numbers below the upper end of the range, and of those above its lower end, in percent.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, not {self.percent:g}")

    def range_of(self, numbers: Distribution) -> tuple[float, float]:
        share = self.percent / 100
        low, high = -_upper_end(numbers.mirrored(), share), _upper_end(numbers, share)
        return (low, high) if low < high else (numbers.low, numbers.high)


def _upper_end(numbers: Distribution, share: float) -> float:
    """Below which a share of the numbers lies, rounded down to whole numbers."""
    below = np.cumsum(numbers.counts)
    wanted = max(1.0, math.floor(share * below[-1]))
    bin = int(np.searchsorted(below, wanted))
    missing = (below[bin] - wanted) / numbers.counts[bin]
    lower, upper = (float(edge[bin]) for edge in numbers.seen_edges())
    return upper - float(missing) * (upper - lower)
