"""Methods of factorizing a layer: one a file."""

from . import spatial, svd, tucker2  # registers methods
from .registry import Factorization, Ranks, register_method
