"""The smallest ranks that keep a share of the sum of squared singular values, in each unfolding by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..spectrum import Spectrum
from .registry import RankRule, register_rank_rule


@register_rank_rule("energy")
@dataclass(frozen=True)
class Energy(RankRule):
    """``energy:0.9`` keeps at least nine tenths."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"the share of energy to keep is above 0 and below 1, not {self.share:g}")

    def rank(self, spectrum: Spectrum) -> int:
        return min(spectrum.full, int(np.searchsorted(spectrum.energies, self.share)) + 1)
