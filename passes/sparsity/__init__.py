"""Zeros in weights: which weights may be zero together, how much the network would miss them, and setting them to zero.

Importing this package registers its pass, patterns and criteria.
"""

from . import prune_weights  # registers the pass
from .criteria import register_weight_criterion
from .patterns import ZeroPattern, register_pattern
