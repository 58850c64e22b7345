"""Ways to choose zeros by what a layer returns on calibration data, by name.

A way is a function in a file of its own, registered under the name that pipelines say::

    @register_weight_reconstruction("obc")
    def obc(task):
        return ...      # which weights stay, a mask [groups, outputs, terms]

Whatever is chosen, the weights that stay are fitted afterwards, by least squares (`tersor.passes.sparsity.refit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...name_table import NameTable
from ..patterns import ZeroPattern


@dataclass(frozen=True)
class WeightFit:
    """One weight, and what is known to choose its zeros.

    Attributes
    ----------
    weight
        float64 [groups, outputs, terms].
    hessian
        float64 [groups, terms, terms]: the mean of the products of what the weight is multiplied with, damped.
    chosen
        What the criterion would keep, [groups, outputs, terms].
    pattern
        Which weights are zero together.
    shape
        Of the weight in its layer.
    gone
        How many units of the pattern become zero.
    """

    weight: torch.Tensor
    hessian: torch.Tensor
    chosen: torch.Tensor
    pattern: ZeroPattern
    shape: torch.Size
    gone: int


WeightReconstruction = Callable[[WeightFit], torch.Tensor]

WEIGHT_RECONSTRUCTIONS: NameTable[WeightReconstruction] = NameTable("reconstruction", family="weight")

register_weight_reconstruction = WEIGHT_RECONSTRUCTIONS.register
