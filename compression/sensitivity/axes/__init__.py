"""Ways to compress a layer, whose cost can be scanned: one a file."""

from . import bits, channels, ranks, zeros  # registers axes
from .registry import AxisContext, SensitivityAxis, axis_names, make_axis, register_axis
