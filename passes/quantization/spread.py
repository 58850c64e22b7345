"""What calibration tells of an activation beside its range: whether it varies at all, and whether it drifts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import torch

from ...ir import Op
from .placement import name_of

_FEWEST = 4  # batches whose halves are compared
_DRIFT = 8.0  # between the sizes of two halves: three bits of eight are lost where it is in the scale of the data


class Spread:
    """Extremes of an activation: one number for each batch, and two of all.

    Attributes
    ----------
    low, high
        Smallest and largest number so far.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._sizes: list[float] = []  # largest magnitude of each batch

    def add(self, numbers: torch.Tensor) -> None:
        """Take in one batch: f32."""
        low, high = (extreme.item() for extreme in torch.aminmax(numbers))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._sizes.append(max(-low, high))

    @property
    def constant(self) -> float | None:
        """The only number there is; None if there are several."""
        return self.low + 0.0 if self.low == self.high else None  # 0.0: no -0

    @property
    def drift(self) -> tuple[float, float] | None:
        """What the batches of both halves of the data reach, by median, where these are far apart."""
        half = len(self._sizes) // 2
        if 2 * half < _FEWEST:
            return None
        first, second = median(self._sizes[:half]), median(self._sizes[-half:])
        return (first, second) if max(first, second) > _DRIFT * min(first, second) else None


def drift_warning(spreads: Mapping[Op, Spread]) -> str:
    """A line about the first of the notes whose numbers drift; empty if none does."""
    for note, spread in spreads.items():
        if spread.drift is not None:
            first, second = spread.drift
            return (
                f"calibration data drifts: numbers at {name_of(note.inputs[0])} reach {first:.3g} in the first half of "
                f"the batches, and {second:.3g} in the second; give both one scale, or shuffle what differs that much"
            )
    return ""
