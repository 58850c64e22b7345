"""``auto``: for each value, the calibrator with the least error of the layers that read it.

All candidates take their ranges from one histogram, so the data is read once. What the layers make of the error of each
range is computed on a bounded sample of the value (`choice`). Numbers that are errors of measurement are part of that
sample too: use ``percentile`` where there are such.
"""

from __future__ import annotations

from dataclasses import dataclass

from .entropy import Entropy
from .histogram import HistogramCalibrator, SeveralRanges
from .mse import MeanSquaredError
from .percentile import Percentile
from .registry import Calibrator, RangeObserver, register_calibrator

_CANDIDATES: dict[str, HistogramCalibrator] = {
    "minmax": Percentile(100.0),
    "percentile:99.99": Percentile(99.99),
    "percentile:99.9": Percentile(99.9),
    "mse": MeanSquaredError(),
    "entropy": Entropy(),
}


@register_calibrator("auto")
@dataclass(frozen=True)
class Auto(Calibrator):
    """Of several ranges, the one with the least error of the layers that read the value."""

    def observer(self) -> RangeObserver:
        return SeveralRanges(_CANDIDATES)
