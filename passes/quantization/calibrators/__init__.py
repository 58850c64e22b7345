"""Calibrators: one a file. Importing this package registers all of them."""

from . import minmax, moving_average, percentile  # noqa: F401 (registers calibrators)
from .registry import Calibrator, RangeObserver, parse_calibrator, register_calibrator

__all__ = ["Calibrator", "RangeObserver", "parse_calibrator", "register_calibrator"]
