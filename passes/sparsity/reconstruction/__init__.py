"""Ways to choose zeros on calibration data, one a file. Importing this package registers all of them."""

from . import obc, refit  # registers ways
from .registry import WEIGHT_RECONSTRUCTIONS, WeightFit, WeightReconstruction, register_weight_reconstruction
