"""``taylor``: the square of what the loss changes by to first order when a channel is removed.

Without a channel, all layers that read it read zeros. To first order the loss of one example changes by the sum of
gradient times activation over all positions, and over all layers that read the channel (`readers`). A channel's score
is the mean of its square over the examples of the calibration data, over the mean of the group's channels. (Without the
latter, one threshold empties the layers that matter least, and re-estimated or trained networks are worse for it.) An
example is an index of the first dimension of what a layer reads.

Without a ``loss`` it is the mean square of the outputs' change to first order, in units of their root mean square
(`gradients`).

Method: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017; squared,
and over all coupled layers, as in "Importance Estimation for Neural Network Pruning", CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ....ir import Op
from ..gradients import Objective, gradients
from ..groups import ChannelGroup
from ..readers import Reader, readers_of
from .registry import Scores, Scoring, mean_of_relative, on_data, register_criterion


@register_criterion("taylor")
@on_data
def taylor(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    readers = scoring.readers
    objective = Objective(scoring.graph, scoring.loss, scoring.seed)
    totals: list[Scores] = [np.zeros(group.size) for group in groups]
    for index, batch in enumerate(scoring.batches()):
        gates = {reader.op: _gate(reader) for reader in readers}
        found = gradients(objective.at(batch, index, gates), list(gates.values()))
        changes = {
            reader.op: gradient.movedim(reader.axis, 1).reshape(-1, len(reader.classes))
            for reader, gradient in zip(readers, found, strict=True)
        }
        for group, total in zip(groups, totals, strict=True):
            total += _squares(group, readers_of(group, readers), changes)
    return [mean_of_relative([total], len(total)) for total in totals]


def _gate(reader: Reader) -> torch.Tensor:
    """Ones, one for each example and channel that a layer reads."""
    kept = {reader.axis, 0}
    shape = [extent if dim in kept else 1 for dim, extent in enumerate(reader.x.shape)]
    return torch.ones(shape, dtype=reader.x.type.dtype.torch, requires_grad=True)


def _squares(group: ChannelGroup, readers: Sequence[Reader], changes: Mapping[Op, torch.Tensor]) -> Scores:
    """Squares of the changes that all readers make together, as a mean over the examples of a batch."""
    found = []
    for reader in readers:
        change = changes[reader.op]
        positions = torch.from_numpy(reader.positions(group))
        there = positions >= 0
        found.append(change.new_zeros(len(change), group.size).index_add(1, positions[there], change[:, there]))
    if not found:
        return np.zeros(group.size)
    if len({len(one) for one in found}) > 1:  # some layers read the examples apart, some together
        found = [one.sum(0, keepdim=True) for one in found]
    squares: Scores = torch.stack(found).sum(0).square().mean(0).numpy()
    return squares
