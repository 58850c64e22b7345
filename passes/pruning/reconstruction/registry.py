"""Ways to choose channels by what the layers that read them return, by name.

A way is a function in a file of its own, registered under the name that pipelines say::

    @register_reconstruction("lasso")
    def lasso(task):
        return ...      # a mask [group.size] of the task.count channels that stay

Whatever is chosen, the layers that read the channels are fitted again afterwards (`tersor.passes.pruning.rebuild`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ...name_table import NameTable
from ..groups import ChannelGroup
from ..moments import LayerSums

Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One layer that reads a group.

    Attributes
    ----------
    moments
        Its sums: X from the network as pruned so far, Y from the original.
    weight
        Its weights as they are now, ``[G, U, O / G]``.
    positions
        For each input channel of the weight, the position of the channel in the group; -1 for others.
    present
        Which input channels of the weight are still there, this group's included.
    """

    moments: LayerSums
    weight: torch.Tensor
    positions: NDArray[np.int64]
    present: Mask

    @cached_property
    def products(self) -> tuple[Matrix, NDArray[np.float64]]:
        """Of the contributions Z_c of the input channels to the outputs: all ``<Z_c, Z_d>``, and all ``<Z_c, Y>``."""
        extent = len(self.positions)
        pairs = self.moments.gram * (self.weight @ self.weight.transpose(1, 2))
        inner = pairs.sum(0).reshape(extent, self.moments.taps, extent, self.moments.taps).sum((1, 3))
        outer = (self.moments.cross * self.weight).sum((0, 2)).reshape(extent, self.moments.taps).sum(1)
        return inner.numpy(), outer.numpy()

    def unknowns(self, channel: int) -> torch.Tensor:
        """Indices of the unknowns of a channel of the group."""
        return self.moments.unknowns(self.positions == channel)


@dataclass(frozen=True)
class Selection:
    """How many channels of a group stay, and what is known to choose them.

    Attributes
    ----------
    group
        The channels.
    count
        How many stay.
    chosen
        What the criterion would keep.
    there
        The channels that are there before.
    readings
        The layers that read them, with sums.
    """

    group: ChannelGroup
    count: int
    chosen: Mask
    there: Mask
    readings: Sequence[Reading]

    @cached_property
    def products(self) -> tuple[Matrix, NDArray[np.float64]]:
        """Over all layers, each in units of what it returns: ``<Z_c, Z_d>``, and ``<Z_c, Y - what others make>``."""
        size = self.group.size
        inner, outer = np.zeros((size, size)), np.zeros(size)
        for reading in self.readings:
            pairs, targets = reading.products
            mine = reading.positions >= 0
            others = reading.present & ~mine
            left = targets - pairs[:, others].sum(1)
            spread = np.zeros((size, len(mine)))
            spread[reading.positions[mine], np.flatnonzero(mine)] = 1
            scale = max(reading.moments.energy, 1e-300)
            inner += spread @ pairs @ spread.T / scale
            outer += spread @ left / scale
        return inner, outer


Reconstruction = Callable[[Selection], Mask]

RECONSTRUCTIONS: NameTable[Reconstruction] = NameTable("reconstruction", family="pruning")

register_reconstruction = RECONSTRUCTIONS.register


def strongest(scores: NDArray[np.float64], task: Selection) -> Mask:
    """The ``task.count`` channels with the largest scores, of those that are there; of equal ones, the first."""
    mask = np.zeros(task.group.size, bool)
    mask[np.argsort(-np.where(task.there, scores, -np.inf), kind="stable")[: task.count]] = True
    return mask & task.there
