"""Which channels stay: one threshold for all groups, as low as the wanted multiply-adds allow.

Of each group, the channels whose score is above the threshold stay, the most important first, but at least a fraction
(``floor``), at least one, and rounded up to a multiple (``multiple``) of filters, so that the target's vectors are
full. Multiply-adds can only fall as the threshold rises, so the lowest one that is low enough is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir import TersorError
from .groups import ChannelGroup, ChannelMap


@dataclass(frozen=True)
class Limits:
    """How far groups may shrink.

    Attributes
    ----------
    floor
        Smallest fraction of a group's channels that stays.
    multiple
        Kept filters of a layer are rounded up to a multiple of this; 1 for no rounding.
    """

    floor: float
    multiple: int

    def kept(self, group: ChannelGroup, wanted: int) -> int:
        """Channels of ``group`` that stay when ``wanted`` are important enough."""
        step = self.multiple // math.gcd(self.multiple, group.width)
        least = max(1, math.ceil(self.floor * group.size))
        return min(group.size, -(-max(wanted, least) // step) * step)


def select(
    channels: ChannelMap, scores: Sequence[NDArray[np.float64]], macs: float, limits: Limits
) -> list[NDArray[np.bool_]]:
    """Choose what stays.

    Parameters
    ----------
    channels
        The groups.
    scores
        For each group an array ``[group.size]``, larger for more important channels.
    macs
        Ratio of multiply-adds that may be left, between 0 and 1.
    limits
        How far groups may shrink.

    Returns
    -------
    For each group a mask ``[group.size]`` of the channels that stay.

    Raises
    ------
    TersorError
        When the ratio cannot be reached; the message gives the smallest one that can.
    """
    everything = channels.macs(np.ones(channels.count, bool))
    budget = macs * everything

    def masks(threshold: float) -> list[NDArray[np.bool_]]:
        return [_strongest(s, limits.kept(g, int((s > threshold).sum()))) for g, s in zip(groups, scores, strict=True)]

    def remaining(threshold: float) -> int:
        return channels.macs(stay(channels, masks(threshold)))

    groups = channels.groups
    finite = np.concatenate([one[np.isfinite(one)] for one in scores])
    thresholds = np.unique(finite)
    least = remaining(thresholds[-1]) if len(thresholds) else everything
    if least > budget:
        raise TersorError(_unreachable(macs, least / everything, limits))
    low, high = 0, len(thresholds) - 1  # the threshold at `high` is high enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if remaining(thresholds[middle]) <= budget else (middle + 1, high)
    return masks(thresholds[high])


def stay(channels: ChannelMap, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Masks of all groups as one mask over `ChannelMap.classes`."""
    kept = np.ones(channels.count, bool)
    for group, mask in zip(channels.groups, masks, strict=True):
        kept[group.channels] = mask
    return kept


def _unreachable(macs: float, least: float, limits: Limits) -> str:
    bounds = f"(floor={limits.floor:g}, in multiples of {limits.multiple})"
    if least == 1:
        return f"nothing to prune: no group may shrink {bounds}; ask for a lower floor or multiple"
    return (
        f"macs={macs:g} would empty a layer: {least:.3f} of the multiply-adds remain when every group keeps its"
        f" smallest number of channels {bounds}; ask for more macs, or a lower floor or multiple"
    )


def _strongest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The ``count`` largest; of equal ones, the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask
