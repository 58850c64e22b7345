"""Calibrators: one a file. Importing this package registers all of them."""

from . import minmax, moving_average, percentile  # registers calibrators
from .registry import Calibrator, RangeObserver, parse_calibrator, register_calibrator
