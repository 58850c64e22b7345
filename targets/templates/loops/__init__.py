"""Kernels without a template of their own: the formula of an op, scheduled by a fixed rule.

The modules that the first import statement names hold the formulas of ops. To add one, write its file as
`tersor.targets.templates.loops.formula` says, and name it there.
"""

from . import argument, distance, scan, search, sort, special
from .adaptive_pool import AdaptivePoolSpec
from .integer_reduce import INTEGERS, IntegerReduceSpec
from .schedule import LoopKnobs, LoopSpec, accepts, build, candidates, definition
