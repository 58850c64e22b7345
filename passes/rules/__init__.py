"""The rules of `canonicalize`, grouped by what they rewrite."""

from . import algebra, layers, shapes, windows

RULES = (*shapes.RULES, *algebra.RULES, *windows.RULES, *layers.RULES)

__all__ = ["RULES"]
