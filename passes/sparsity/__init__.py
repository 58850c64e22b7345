"""Zeros in weights: which may be zero together, how much the network would miss them, and leaving blocks of them out.

Importing this package registers its passes, patterns and criteria.
"""

from . import prune_weights, skip_zeros  # registers passes
from .criteria import register_weight_criterion
from .patterns import ZeroPattern, register_pattern
