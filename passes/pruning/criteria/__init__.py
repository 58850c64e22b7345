"""Criteria of channel pruning, one a file. Importing this package registers all of them."""

from . import activation, bn_gamma, fpgm, l1, l2, obd, obs, random, taylor  # registers criteria
from .registry import (
    Criterion,
    Scores,
    Scoring,
    find_criterion,
    needs_data,
    on_data,
    per_channel,
    register_criterion,
    score,
)
