"""Criteria for single weights, one a file. Importing this package registers all of them."""

from . import l1, l2, lamp, obd, random  # registers criteria
from .registry import (
    WeightCriterion,
    WeightScoring,
    find_weight_criterion,
    needs_data,
    on_data,
    register_weight_criterion,
    score_weights,
)
