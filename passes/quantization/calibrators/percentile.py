"""``percentile``: a few extreme numbers are cut off, so that the steps between integers become finer for all others.

The numbers are counted in a histogram of fixed size. It is symmetric around zero; when a number lies outside, its bins
are joined in pairs until it does not, so that one pass over the data is enough, and a bin is never wider than 1/1024 of
the largest magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .registry import Calibrator, RangeObserver, register_calibrator

_SIDE = 2048  # bins on each side of zero
_TINY = 1e-30  # smallest magnitude that bins are made for; all below is one bin


@register_calibrator("percentile")
@dataclass(frozen=True)
class Percentile(Calibrator):
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

    def observer(self) -> RangeObserver:
        return _Histogram(self.percent / 100)


class _Histogram:
    def __init__(self, share: float) -> None:
        self._share = share
        self._width = 0.0  # of a bin
        self._counts = np.zeros(2 * _SIDE, np.int64)
        self._low, self._high = math.inf, -math.inf

    def observe(self, numbers: torch.Tensor) -> None:
        values = numbers.detach().double().numpy().ravel()
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._reach(max(-self._low, self._high, _TINY))
        bins = np.floor(values / self._width).astype(np.int64) + _SIDE
        self._counts += np.bincount(bins.clip(0, 2 * _SIDE - 1), minlength=2 * _SIDE)

    def _reach(self, magnitude: float) -> None:
        """Widen the bins until the histogram covers ``magnitude``."""
        if not self._width:
            self._width = magnitude / _SIDE
        while magnitude > self._width * _SIDE:
            pairs = self._counts.reshape(-1, 2).sum(1)
            self._counts = np.pad(pairs, _SIDE // 2)
            self._width *= 2

    def range(self) -> tuple[float, float]:
        edges = np.arange(-_SIDE, _SIDE + 1) * self._width
        below = np.concatenate([[0], np.cumsum(self._counts)])  # numbers below each edge
        low, high = (float(np.interp(share * below[-1], below, edges)) for share in (1 - self._share, self._share))
        return max(low, self._low), min(high, self._high)
