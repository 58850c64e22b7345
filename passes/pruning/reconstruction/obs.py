"""``obs``: one channel after another goes, each time the one that the others can replace best.

With ``H = X'X`` of what a layer reads and its weights W, taking the unknowns c away costs
``tr(W_c' (H^-1)_cc^-1 W_c)`` when all other weights are updated by ``-(H^-1)_:c (H^-1)_cc^-1 W_c`` (Optimal Brain
Surgeon, for blocks). Then they are, the inverse is reduced to what is left, and the next channel is looked for. H is
damped by a hundredth of its mean diagonal, as in GPTQ. W are the best weights to begin with, so that those of channels
that are always zero do not count.

Method: Hassibi, Stork, Wolff, "Optimal Brain Surgeon", ICNN 1993; Frantar, Alistarh, "Optimal Brain Compression",
NeurIPS 2022; here for whole channels of all layers that read them.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .registry import Mask, Reading, Selection, register_reconstruction


@register_reconstruction("obs")
def obs(task: Selection) -> Mask:
    """See the module."""
    surgeons = [Surgeon(reading) for reading in task.readings]
    left = task.there.copy()
    while left.sum() > task.count:
        costs = np.full(task.group.size, np.inf)
        for channel in np.flatnonzero(left).tolist():
            costs[channel] = math.fsum(surgeon.cost(channel) for surgeon in surgeons)
        gone = int(costs.argmin())
        left[gone] = False
        for surgeon in surgeons:
            surgeon.remove(gone)
    return left


class Surgeon:
    """A layer's best weights, and the inverse of its damped Hessian, while channels go."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        gram = reading.moments.gram.clone()
        gram += 0.01 * gram.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-300) * torch.eye(gram.shape[1])
        self._weight, self._inverse = reading.moments.cross.clone(), gram
        self._cut_off(reading.moments.unknowns(~reading.present))
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self._weight = self._inverse @ self._weight
        self._scale = max(reading.moments.energy, 1e-300)

    def cost(self, channel: int) -> float:
        """What the squared outputs are off by without ``channel``, over the squared outputs."""
        at = self._reading.unknowns(channel)
        if not len(at):
            return 0.0
        weight = self._weight[:, at]
        return float((weight * torch.linalg.solve(self._inverse[:, at][:, :, at], weight)).sum()) / self._scale

    def remove(self, channel: int) -> None:
        """Take ``channel`` away, and update what stays."""
        at = self._reading.unknowns(channel)
        if not len(at):
            return
        columns = self._inverse[:, :, at]
        shares = torch.linalg.solve(columns[:, at], torch.cat([self._weight[:, at], columns.transpose(1, 2)], 2))
        outputs = self._weight.shape[2]
        self._weight -= columns @ shares[:, :, :outputs]
        self._inverse -= columns @ shares[:, :, outputs:]
        self._cut_off(at)

    def _cut_off(self, at: torch.Tensor) -> None:
        """Unknowns that are gone are zero, and have nothing to do with the others."""
        self._weight[:, at] = 0
        self._inverse[:, at] = 0
        self._inverse[:, :, at] = 0
        self._inverse[:, at, at] = 1
