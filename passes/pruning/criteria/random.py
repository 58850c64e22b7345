"""``random``: uniform numbers from a seeded generator, the baseline that every criterion must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..groups import ChannelGroup
from .registry import Scores, Scoring, register_criterion


@register_criterion("random")
def random(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    generator = np.random.default_rng(scoring.seed)
    return [generator.random(group.size) for group in groups]
