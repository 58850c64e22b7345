"""What rank rules look at: the singular values of a weight, unfolded to a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix of ``rows`` times ``columns`` numbers.

    Attributes
    ----------
    values
        float64, in descending order, as many as the matrix has at most: the smaller of ``rows`` and ``columns``.
    """

    values: NDArray[np.float64]
    rows: int
    columns: int

    @property
    def full(self) -> int:
        """The largest possible rank."""
        return len(self.values)

    @property
    def energies(self) -> NDArray[np.float64]:
        """Shares of the sum of squares that ranks 1, 2, ... keep; 1 for a matrix of zeros."""
        squares = np.cumsum(self.values**2)
        return squares / squares[-1] if squares[-1] else np.ones_like(squares)


def spectrum_of(matrix: torch.Tensor, values: torch.Tensor) -> Spectrum:
    """The spectrum of ``matrix``, whose singular values are ``values``."""
    rows, columns = matrix.shape
    return Spectrum(values.numpy(), rows, columns)
