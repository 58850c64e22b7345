"""Criteria of channel pruning, one a file. Importing this package registers all of them."""

from . import bn_gamma, l1, random  # registers criteria
from .registry import Criterion, Scores, Scoring, per_channel, register_criterion
