"""``moving-average``: the extremes of the batches, averaged, so that one unusual batch counts little.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .registry import Calibrator, RangeObserver, register_calibrator


@register_calibrator("moving-average")
@dataclass(frozen=True)
class MovingAverage(Calibrator):
    """Exponential moving averages of each batch's smallest and largest number.

    Attributes
    ----------
    momentum
        What each batch leaves of the average before it, from 0 to below 1.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, not {self.momentum:g}")

    def observer(self) -> RangeObserver:
        return _Average(self.momentum)


class _Average:
    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._range: tuple[float, float] | None = None

    def observe(self, numbers: torch.Tensor) -> None:
        low, high = (extreme.item() for extreme in torch.aminmax(numbers))
        if self._range is None:
            self._range = low, high
            return
        kept, added = self._momentum, 1 - self._momentum
        self._range = kept * self._range[0] + added * low, kept * self._range[1] + added * high

    def range(self) -> tuple[float, float]:
        assert self._range is not None
        return self._range
