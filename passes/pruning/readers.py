"""Layers that read channels: what a channel does to the network, it does through them.

Setting a channel's slice of all kernels that read it to zero changes the outputs exactly as removing the channel does,
since nothing else carries it to an output; but units of a recurrent layer also read one another. So what the removal of
a channel costs can be told from what these layers read. A depthwise convolution passes channels on, and does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir import Op, Value
from ...ir.ops import WeightOp
from .atoms import FIXED, Labels
from .groups import ChannelGroup, ChannelMap


@dataclass(frozen=True)
class Reader:
    """A convolution or linear layer that reads channels which may go.

    Attributes
    ----------
    op
        The layer.
    axis
        Dimension of the first operand with the channels.
    classes
        Class of each index along it (see `ChannelMap.classes`).
    kernels
        Class of each index along the weight's dimension 1: fewer than ``classes`` for a grouped convolution.
    """

    op: Op
    axis: int
    classes: Labels
    kernels: Labels

    @property
    def x(self) -> Value:
        """What it reads."""
        return self.op.inputs[0]

    @property
    def weight_id(self) -> str | None:
        """The weight that it multiplies by; None if that is computed."""
        made = self.op.inputs[1].op
        return made.attrs.id if isinstance(made, WeightOp) else None

    @property
    def bias(self) -> Value | None:
        """What it adds to its outputs."""
        return self.op.operands[2] if len(self.op.operands) > 2 else None

    def reads(self, group: ChannelGroup) -> bool:
        """Whether some of the channels are of ``group``."""
        return bool(np.isin(self.kernels, group.channels).any())

    def positions(self, group: ChannelGroup) -> NDArray[np.int64]:
        """For each index of the operand's channels the position of the channel in ``group``; -1 if it is of another."""
        return _positions(self.classes, group)

    def kernel_positions(self, group: ChannelGroup) -> NDArray[np.int64]:
        """The same for the weight's dimension 1."""
        return _positions(self.kernels, group)


def find_readers(channels: ChannelMap) -> tuple[Reader, ...]:
    """All layers that read channels of some group, in execution order."""
    found = []
    for layer in channels.layers:
        if (layer.inputs != FIXED).any():
            axis = layer.op.channel_axis % layer.op.inputs[0].type.rank
            found.append(Reader(layer.op, axis, channels.classes[layer.op.inputs[0]][axis], layer.inputs))
    return tuple(found)


def readers_of(group: ChannelGroup, readers: Sequence[Reader]) -> tuple[Reader, ...]:
    """Those of ``readers`` that read channels of ``group``."""
    return tuple(reader for reader in readers if reader.reads(group))


def _positions(classes: Labels, group: ChannelGroup) -> NDArray[np.int64]:
    at = np.searchsorted(group.channels, classes).clip(max=group.size - 1)
    return np.where(group.channels[at] == classes, at, -1)
