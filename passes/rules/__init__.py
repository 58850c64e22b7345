"""The rules of `canonicalize`, grouped by what they rewrite."""

from . import algebra, decompose, layers, shapes, windows

RULES = (*shapes.RULES, *algebra.RULES, *windows.RULES, *layers.RULES, *decompose.RULES)
