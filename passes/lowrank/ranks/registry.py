"""Rules for ranks by name: how much of each layer stays.

A rule is a frozen dataclass in a file of its own, registered under the name that pipelines say, with at most one field,
which is written behind a colon::

    @register_rank_rule("energy")
    @dataclass(frozen=True)
    class Energy(RankRule):
        share: float                                # energy:0.9

        def rank(self, spectrum):
            return ...                              # of one matrix; rounded to full vectors afterwards

Rules that weigh layers against each other override `RankRule.choose` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...name_table import NameTable, make_from_text
from ..candidate import Candidate
from ..methods import Ranks
from ..spectrum import Spectrum

Choice = Ranks | None  # None: the layer stays as it is


@dataclass(frozen=True)
class Request:
    """What a rule needs to know besides the layers.

    Attributes
    ----------
    macs
        Multiply-adds of the whole graph.
    multiple
        Ranks are multiples of this where the layer allows it, so that the target's vectors are full.
    """

    macs: int
    multiple: int

    def rounded(self, rank: int, spectrum: Spectrum) -> int:
        """``rank``, rounded up to a multiple, but from 1 to full rank."""
        return min(spectrum.full, max(1, -(-rank // self.multiple)) * self.multiple)


class RankRule:
    """Base of the rules."""

    def choose(self, candidates: Sequence[Candidate], request: Request) -> list[Choice]:
        """Ranks for each candidate."""
        return [
            tuple(request.rounded(self.rank(spectrum), spectrum) for spectrum in candidate.factors.spectra)
            for candidate in candidates
        ]

    def rank(self, spectrum: Spectrum) -> int:
        """Of one matrix, for rules that look at each by itself."""
        raise NotImplementedError


RANK_RULES: NameTable[type[RankRule]] = NameTable("rank rule")

register_rank_rule = RANK_RULES.register


def parse_rank_rule(text: str) -> RankRule:
    """Read ``name`` or ``name:number``; raises ValueError that says what is wrong."""
    return make_from_text(RANK_RULES, text, option="ranks")
