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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar, get_type_hints

from ....ir import TersorError, suggest
from ...options import convert
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


RuleT = TypeVar("RuleT", bound=type[RankRule])

_RULES: dict[str, type[RankRule]] = {}


def register_rank_rule(name: str) -> Callable[[RuleT], RuleT]:
    """Class decorator: make a rule usable in pipelines; raises TersorError when the name is taken."""

    def register(rule: RuleT) -> RuleT:
        if name in _RULES:
            raise TersorError(f"rank rule {name!r} is registered twice; choose another name")
        _RULES[name] = rule
        return rule

    return register


def parse_rank_rule(text: str) -> RankRule:
    """Read ``name`` or ``name:number``; raises ValueError that says what is wrong."""
    name, colon, number = text.partition(":")
    if name not in _RULES:
        raise ValueError(f"unknown rank rule {name!r}{suggest(name, _RULES)}")
    rule = _RULES[name]
    names = [entry.name for entry in fields(rule)]  # type: ignore[arg-type] # rules are dataclasses
    if not names:
        if colon:
            raise ValueError(f"rank rule {name} takes no number, got {text!r}")
        return rule()
    if not number:
        raise ValueError(f"rank rule {name} needs a number: {name}:{names[0].upper()}")
    try:
        value = convert(number, get_type_hints(rule)[names[0]])
    except ValueError as error:
        raise ValueError(f"ranks={text}: {error}") from None
    return rule(value)


def rank_rule_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_RULES))
