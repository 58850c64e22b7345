"""Ways to choose channels by what the layers that read them return: one a file."""

from . import lasso, obs, refit, thinet  # registers reconstructions
from .registry import Reading, Reconstruction, Selection, register_reconstruction
