"""Reconstruction: layers that read pruned channels get the weights with which they return nearly what they did.

Group by group in execution order, channels are chosen (`reconstruction`) by what the layers that read them make of
them: X is what a layer reads in the network as pruned so far, Y what it returns in the original. These layers then get
new kernels for what is left, by least squares. When all groups are done, all of these layers are fitted once more in
execution order, since on residual streams a layer may stand before others that were pruned later.

A ridge (`tersor.passes.pruning.ridge`) draws weights to those of the original. A layer with a bias gets another bias;
one without gets none, as the batch normalisation behind it has one (``reestimate-batchnorm`` measures it again).

Method: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Graph, Op
from ...ir.ops import WeightOp
from .groups import ChannelMap
from .moments import LayerSums, collect, refusal
from .readers import Reader, find_readers, readers_of
from .reconstruction import Reading, Reconstruction, Selection
from .ridge import fitted
from .select import Masks, stay
from .shrink import without_channels


@dataclass
class Rebuilder:
    """Chooses channels, and fits the layers that read them.

    Attributes
    ----------
    graph
        The original, in full extents.
    channels
        Its groups.
    batches
        Calibration data, to be iterated repeatedly.
    method
        How channels are chosen, given how many.
    seed
        Of the positions that are looked at.
    numbers
        Weights of the network as pruned so far, in full extents, where they differ from the original's.
    """

    graph: Graph
    channels: ChannelMap
    batches: Iterable[Sequence[torch.Tensor]]
    method: Reconstruction
    seed: int
    numbers: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: dict[Op, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = find_readers(self.channels)
        self.refused = {reader.op: reason for reader in self._all if (reason := refusal(reader))}

    def run(self, masks: Masks, present: Masks) -> Masks:
        """Choose as many channels of each group as ``masks`` keep, and fit what reads them.

        Parameters
        ----------
        present
            The channels that are there before.

        Raises
        ------
        TersorError
            When there are fewer positions than unknowns of a layer; the message says how many batches it takes.
        """
        now = [mask.copy() for mask in present]
        for index, group in enumerate(self.channels.groups):
            if masks[index].sum() == now[index].sum():
                continue
            readers = [reader for reader in readers_of(group, self._all) if reader.op not in self.refused]
            moments = self._collect(readers)
            kept = stay(self.channels, now)
            readings = [self._reading(one, kept, one.reader.kernel_positions(group)) for one in moments.values()]
            task = Selection(group, int(masks[index].sum()), masks[index], now[index], readings)
            now[index] = self.method(task) if readings else masks[index]
            self.numbers = without_channels(self.graph, self.channels, now, self.numbers)
            self._fit(moments.values(), stay(self.channels, now))
        kept = stay(self.channels, now)
        for reader in self._all:
            if reader.op not in self.refused and not kept[reader.kernels].all():
                self._fit(self._collect([reader]).values(), kept)
        return now

    def note(self) -> str:
        """How far the layers' outputs are off, for the report."""
        if not self.errors:
            return "no layer was fitted"
        before, after = (np.median(one) for one in zip(*self.errors.values(), strict=True))
        return (
            f"{len(self.errors)} layers fitted by least squares: error of their outputs"
            f" {before:.3g} -> {after:.3g} (median)"
        )

    def _collect(self, readers: Sequence[Reader]) -> dict[Op, LayerSums]:
        return collect(self.graph, self.numbers, readers, self.batches, self.seed) if readers else {}

    def _weight(self, op: Op) -> torch.Tensor:
        made = op.inputs[1].op
        assert isinstance(made, WeightOp)  # all others are refused
        return self.numbers.get(made.attrs.id, self.graph.weights[made.attrs.id])

    def _reading(self, moments: LayerSums, kept: NDArray[np.bool_], positions: NDArray[np.int64]) -> Reading:
        weight = moments.matrix(self._weight(moments.reader.op))
        return Reading(moments, weight, positions, kept[moments.reader.kernels])

    def _fit(self, found: Iterable[LayerSums], kept: NDArray[np.bool_]) -> None:
        """Store new weights, and biases, for what is kept."""
        for moments in found:
            op = moments.reader.op
            made = op.inputs[1].op
            assert isinstance(made, WeightOp)
            stays = kept[moments.reader.kernels]
            before = moments.matrix(self.graph.weights[made.attrs.id])
            before[:, moments.unknowns(~stays)] = 0
            bias = None if moments.reader.bias is None else moments.reader.bias.op
            has_bias = isinstance(bias, WeightOp)
            matrix, shift = fitted(moments, before, moments.unknowns(stays), has_bias)
            weight = matrix.transpose(1, 2).reshape(op.inputs[1].shape)
            self.numbers[made.attrs.id] = weight.float()
            if isinstance(bias, WeightOp):
                id = bias.attrs.id
                self.numbers[id] = self.graph.weights[id] + shift.reshape(-1).float()
            self.errors[op] = (moments.error(before, torch.zeros_like(shift)), moments.error(matrix, shift))
