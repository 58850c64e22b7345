"""``sensitivity``: how much of each group goes, by a scan of what each group costs alone.

Every group loses as many channels as cost no more than one loss, which is the same for all groups: sensitive ones keep
most of theirs, and those that nobody would miss go first. The lowest such loss that meets the budgets is found by
`select`. Which channels of a group go is the criterion's choice.

Method: ratios of layers by their sensitivities as in Han et al., "Learning both Weights and Connections for Efficient
Neural Networks", NeurIPS 2015, and Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2; with
one threshold of loss for all layers in the place of ratios chosen by hand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..sensitivity import find_curves, layer_names, read_scan
from .groups import ChannelGroup, ChannelMap

CHANNELS = "channels"  # the axis of a scan

Losses = Mapping[int, NDArray[np.float64]]  # by index of the group, when 1, 2, … of its channels go; ascending


def losses_of_groups(channels: ChannelMap, path: str, fixed: Collection[int]) -> dict[int, NDArray[np.float64]]:
    """What a scan says of all groups but those whose shares are fixed; infinite beyond what was scanned.

    Raises
    ------
    TersorError
        When the file is no scan, or one of another model.
    """
    names = group_names(channels.groups)
    free = [index for index in range(len(channels.groups)) if index not in fixed]
    wanted = [(names[index], (channels.groups[index].size,)) for index in free]
    curves = find_curves(read_scan(path), path, CHANNELS, wanted)
    counts = {index: np.arange(1, channels.groups[index].size + 1) for index in free}
    return {i: curve.losses(counts[i] / len(counts[i]), whole=0) for i, curve in zip(free, curves, strict=True)}


def group_names(groups: Sequence[ChannelGroup]) -> list[str]:
    """What curves of groups are called: as their first layers."""
    return layer_names([group.layers[0] for group in groups])


def loss_note(losses: Losses, masks: Sequence[NDArray[np.bool_]]) -> str:
    """The largest loss of a group, for the report."""
    gone = {index: int((~masks[index]).sum()) for index in losses}
    largest = max((float(losses[index][count - 1]) for index, count in gone.items() if count), default=0.0)
    return f"sensitivity: no group alone moves the outputs by more than {largest:.2g} of them"
