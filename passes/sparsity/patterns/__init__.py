"""Patterns of zeros, one a file. Importing this package registers all of them."""

from . import few_of_many, single  # registers patterns
from .registry import PATTERNS, ZeroPattern, parse_pattern, register_pattern
