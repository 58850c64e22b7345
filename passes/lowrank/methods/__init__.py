"""Methods of factorizing a layer: one a file."""

from . import spatial, svd, tucker2  # noqa: F401 (registers methods)
from .registry import Factorization, Ranks, find_method, method_names, register_method

__all__ = ["Factorization", "Ranks", "find_method", "method_names", "register_method"]
