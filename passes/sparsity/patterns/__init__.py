"""Patterns of zeros, one a file. Importing this package registers all of them."""

from . import block, few_of_many, single  # registers patterns
from .block import BlockZeros
from .few_of_many import FewOfMany
from .registry import PATTERNS, ZeroPattern, parse_pattern, register_pattern
