"""``minmax``: every number that was seen is covered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .registry import Calibrator, RangeObserver, register_calibrator


@register_calibrator("minmax")
@dataclass(frozen=True)
class MinMax(Calibrator):
    """From the smallest to the largest number of all batches."""

    def observer(self) -> RangeObserver:
        return _Extremes()


class _Extremes:
    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def observe(self, numbers: torch.Tensor) -> None:
        low, high = torch.aminmax(numbers)
        self._low, self._high = min(self._low, low.item()), max(self._high, high.item())

    def range(self) -> tuple[float, float]:
        return self._low, self._high
