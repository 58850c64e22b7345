"""Calibrators: one a file. Importing this package registers all of them."""

from . import auto, entropy, minmax, moving_average, mse, percentile  # registers calibrators
from .registry import Calibrator, RangeObserver, parse_calibrator, register_calibrator
