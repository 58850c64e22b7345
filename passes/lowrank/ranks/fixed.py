"""The same ranks for all layers; a layer whose full rank is lower takes that."""

from __future__ import annotations

from dataclasses import dataclass

from ..spectrum import Spectrum
from .registry import RankRule, register_rank_rule


@register_rank_rule("fixed")
@dataclass(frozen=True)
class Fixed(RankRule):
    """``fixed:32``; rounded up like all ranks."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"a rank is 1 or more, not {self.number}")

    def rank(self, spectrum: Spectrum) -> int:
        return min(spectrum.full, self.number)
