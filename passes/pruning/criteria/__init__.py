"""Criteria of channel pruning, one a file. Importing this package registers all of them."""

from . import bn_gamma, l1, random  # noqa: F401 (registers criteria)
from .registry import Criterion, Scores, Scoring, per_channel, register_criterion

__all__ = [
    "Criterion",
    "Scores",
    "Scoring",
    "per_channel",
    "register_criterion",
]
