"""Ridge regression from sums of products: the weights with which a layer returns nearly what it should.

Where there are hardly more rows than unknowns, least squares fits even what is peculiar to these rows, by large weights
of opposite signs. On other inputs they are worse, and training multiplies by them whatever it changes in front of the
layer: one step at a usual rate can undo all. So weights are drawn to those before:

    |Y - X W|^2 + ridge |W - W0|^2

The ridge is in units of the mean square of what the layer reads. Generalised cross-validation says for each of `RIDGES`
which error to expect on other rows, ``|Y - X W|^2 / (rows - freedom)^2``. The freedom is the sum of ``e / (e + ridge)``
over the eigenvalues e of ``X'X``. Taken is the largest ridge that is within one standard error of the best,
``sqrt(2 / rows)`` of it. The smallest ridge decides where the data does not: for dead channels, and for those that
others repeat.

Method: Golub, Heath, Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
Technometrics 1979; the rule of one standard error: Breiman et al., "Classification and Regression Trees", 1984.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...ir import TersorError
from .moments import LayerSums

RIDGES = tuple(10.0 ** (power / 2) for power in range(-8, 5))  # from 1e-4 to 100
_LEAST = 1e-30  # mean square of what a layer reads, where it reads zeros only
_PRECISION = 1e-12  # of differences of sums: smaller ones say nothing


def fitted(
    moments: LayerSums, before: torch.Tensor, at: torch.Tensor, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [G, U, O / G] that are zero but at some unknowns, and what to add to biases [G, O / G]; both float64.

    Parameters
    ----------
    before
        Weights [G, U, O / G] that they are drawn to, zero but at these unknowns.
    at
        Indices of the unknowns.
    has_bias
        Whether the layer has a bias, which makes up for means; otherwise nothing is added to it.

    Raises
    ------
    TersorError
        When there are fewer rows than unknowns; the message says how many batches it takes.
    """
    unknowns = len(at) + has_bias
    if moments.rows < unknowns:
        needed = math.ceil(unknowns * moments.batches / moments.rows)
        raise TersorError(
            f"least squares at {moments.reader.op.describe()} has {unknowns} unknowns for each output and"
            f" {moments.rows} positions to find them from; give {needed} calibration batches of this size or more"
        )
    gram, cross, energy = moments.gram[:, at][:, :, at], moments.cross[:, at], moments.energy
    x, y = moments.x[:, at], moments.y
    if has_bias:
        gram = gram - x[:, :, None] * x[:, None] / moments.rows
        cross = cross - x[:, :, None] * y[:, None] / moments.rows
        energy -= float(y.square().sum()) / moments.rows
    problem = _Problem.of(gram, cross, energy, before[:, at], moments.rows - has_bias)
    weight = before[:, at] + problem.step(problem.ridge())
    matrix = torch.zeros_like(before)
    matrix[:, at] = weight
    shift = (y - (x[:, None] @ weight)[:, 0]) / moments.rows if has_bias else torch.zeros_like(y)
    return matrix, shift


@dataclass(frozen=True)
class _Problem:
    """What weights lack, in the directions of the eigenvectors of ``X'X``.

    Attributes
    ----------
    values, vectors
        Eigenvalues [G, U] and eigenvectors [G, U, U].
    lacks
        ``X'(Y - X W0)`` along the eigenvectors, [G, U, O / G].
    unit
        Mean square of what the layer reads, [G, 1].
    energy
        ``|Y - X W0|^2``.
    rows
        How many, without those that the bias takes.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    lacks: torch.Tensor
    unit: torch.Tensor
    energy: float
    rows: int

    @classmethod
    def of(cls, gram: torch.Tensor, cross: torch.Tensor, energy: float, before: torch.Tensor, rows: int) -> _Problem:
        """From ``X'X``, ``X'Y``, ``|Y|^2`` and W0."""
        made = gram @ before
        left = max(energy - float((before * (2 * cross - made)).sum()), 0.0)
        values, vectors = torch.linalg.eigh(gram)
        unit = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=_LEAST)
        return cls(values.clamp(min=0), vectors, vectors.transpose(1, 2) @ (cross - made), unit, left, rows)

    def ridge(self) -> float:
        """The largest of `RIDGES` that may be as good as the best one."""
        errors = {ridge: self.expected_error(ridge) for ridge in RIDGES}
        most = min(errors.values()) * (1 + math.sqrt(2 / self.rows))
        return max(ridge for ridge, error in errors.items() if error <= most)

    def step(self, ridge: float) -> torch.Tensor:
        """What to add to W0, [G, U, O / G]."""
        return self.vectors @ (self.lacks / (self.values + ridge * self.unit)[:, :, None])

    def expected_error(self, ridge: float) -> float:
        """A number that is proportional to the squared error to be expected on other rows."""
        damped = self.values + ridge * self.unit
        gain = ((self.values + 2 * ridge * self.unit) / damped.square())[:, :, None] * self.lacks.square()
        freedom = (self.values / damped).sum(1)
        left = (self.rows - freedom).clamp(min=_LEAST).sum()
        return max(self.energy - float(gain.sum()), _PRECISION * self.energy) / float(left.square())
