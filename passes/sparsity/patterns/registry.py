"""Patterns by name: which weights are zero together.

A pattern is a frozen dataclass in a file of its own, registered under the name that pipelines say, with at most one
field, which is written behind a colon::

    @register_pattern("nm")
    @dataclass(frozen=True)
    class FewOfMany(ZeroPattern):
        counts: str                             # nm:2:4

A pattern cuts a weight into units, whose numbers are zero together; the lowest scores of units go first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from ....ir.ops import LayerOp
from ...name_table import NameTable, make_from_text


class ZeroPattern(ABC):
    """Base of the patterns."""

    fixed: ClassVar[bool] = False  # whether the pattern itself says how many weights become zero

    @property
    def blocks(self) -> tuple[int, int] | None:
        """Inputs and outputs of the blocks that kernels may leave out; None where they multiply by the zeros."""
        return None

    def for_lanes(self, lanes: int) -> ZeroPattern:
        """The pattern for a target with so many numbers in a vector."""
        return self

    def refusal(self, op: LayerOp) -> str:
        """Why the weight of a layer cannot have this pattern; empty if it can."""
        return ""

    @abstractmethod
    def units(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores of all units, in one dimension, from those of single weights, [O, I, *window]; means over a unit."""

    @abstractmethod
    def spread(self, units: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """For each weight of a layer, what ``units`` has for its unit."""

    def kept(self, units: torch.Tensor, shape: torch.Size, gone: int) -> torch.Tensor:
        """Which weights stay, a mask of ``shape``, when so many units go: the lowest scores, the first of equal ones.

        With a pattern that is `fixed`, ``gone`` has no meaning.
        """
        mask = torch.ones(units.shape, dtype=torch.bool)
        mask[units.argsort(stable=True)[:gone]] = False
        return self.spread(mask, shape)


PATTERNS: NameTable[type[ZeroPattern]] = NameTable("pattern", family="weight")

register_pattern = PATTERNS.register


def parse_pattern(text: str) -> ZeroPattern:
    """Read ``name`` or ``name:number``; raises ValueError that says what is wrong."""
    return make_from_text(PATTERNS, text, option="pattern")
