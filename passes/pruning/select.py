"""Which channels stay: as many as the budgets allow, chosen by one number for the whole network.

With ``scope=global`` this number is a threshold: of each group, the channels whose score is above it stay. With
``scope=layer`` it is the share of channels that each group loses, whatever their scores in other groups are; a schedule
gives later groups a larger share. With losses of a scan (`equal_loss`) it is the loss that each group may cause alone.
The most important channels of a group stay, but at least a fraction (``floor``), at least one, and rounded up to a
multiple (``multiple``) of filters, so that the target's vectors are full. What a budget counts can only fall as the
number rises, so the lowest one that meets all budgets is found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from ...ir import TersorError
from .budgets import Remainder
from .equal_loss import Losses
from .groups import ChannelGroup, ChannelMap

_SHARES = 2048  # steps of the share of channels that go, for ``scope=layer``
Masks = list[NDArray[np.bool_]]  # for each group the channels that stay


class Scope(Enum):
    """What scores are compared in: the whole network, or each layer by itself."""

    GLOBAL = "global"
    LAYER = "layer"


class PruningSchedule(Enum):
    """How much of each layer goes, relative to the others."""

    UNIFORM = "uniform"
    TRIANGLE = "triangle"  # the more, the later

    def weights(self, count: int) -> NDArray[np.float64]:
        """Factors of the shares of ``count`` groups in execution order; 1 on the mean."""
        if self is PruningSchedule.UNIFORM:
            return np.ones(count)
        return (2 * np.arange(count) + 1) / max(1, count)


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


@dataclass(frozen=True)
class Wanted:
    """How channels are chosen.

    Attributes
    ----------
    budgets
        What may be left; all of them are met.
    limits
        How far groups may shrink.
    scope, schedule
        See the module.
    shares
        Shares of channels that go, by index of the group, of groups that no budget decides about.
    losses
        By index of each other group, what it costs when 1, 2, … of its channels go, ascending; none to go by scores.
    """

    budgets: tuple[Remainder, ...]
    limits: Limits
    scope: Scope = Scope.GLOBAL
    schedule: PruningSchedule = PruningSchedule.UNIFORM
    shares: Mapping[int, float] = field(default_factory=dict)
    losses: Losses = field(default_factory=dict)


def select(
    channels: ChannelMap,
    scores: Sequence[NDArray[np.float64]],
    choice: Wanted,
    present: Sequence[NDArray[np.bool_]] | None = None,
) -> Masks:
    """Choose what stays.

    Parameters
    ----------
    channels
        The groups.
    scores
        For each group an array ``[group.size]``, larger for more important channels.
    present
        The channels that are still there, if some went in an earlier round.

    Returns
    -------
    For each group a mask ``[group.size]`` of the channels that stay.

    Raises
    ------
    TersorError
        When a budget cannot be met; the message gives the smallest one that can.
    """
    if present is not None:
        scores = [np.where(there, one, -np.inf) for there, one in zip(present, scores, strict=True)]
    levels, wanted = _levels(channels, scores, choice)

    def masks(level: int) -> Masks:
        return [
            strongest(one, choice.limits.kept(group, wanted(index, level)))
            for index, (group, one) in enumerate(zip(channels.groups, scores, strict=True))
        ]

    def fits(level: int) -> bool:
        kept = stay(channels, masks(level))
        return all(budget.is_met(kept) for budget in choice.budgets)

    low, high = 0, levels - 1  # the level at `high` is high enough
    if not fits(high):
        _fail(choice, stay(channels, masks(high)))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return masks(high)


def _levels(
    channels: ChannelMap, scores: Sequence[NDArray[np.float64]], choice: Wanted
) -> tuple[int, Callable[[int, int], int]]:
    """Number of levels, and how many channels of a group are wanted at a level; the fewer, the higher it is."""
    groups, shares = channels.groups, choice.shares
    there = [int((one > -np.inf).sum()) for one in scores]
    free = [index for index in range(len(groups)) if index not in shares]

    def fixed(index: int) -> int:
        return there[index] - int(shares[index] * groups[index].size + 1e-9)

    if not choice.budgets or not free:
        return 1, lambda index, level: fixed(index) if index in shares else there[index]
    if choice.losses:
        allowed = np.unique(np.concatenate([one[np.isfinite(one)] for one in choice.losses.values()]))

        def by_loss(index: int, level: int) -> int:
            if index in shares:
                return fixed(index)
            gone = int(np.searchsorted(choice.losses[index], allowed[level - 1], side="right")) if level else 0
            return min(there[index], groups[index].size - gone)

        return len(allowed) + 1, by_loss
    if choice.scope is Scope.LAYER:
        weights = choice.schedule.weights(len(groups))
        most = 1 / weights[free].min()

        def by_share(index: int, level: int) -> int:
            share = min(1.0, most * level / (_SHARES - 1) * weights[index])
            return fixed(index) if index in shares else there[index] - int(share * groups[index].size + 1e-9)

        return _SHARES, by_share
    ranks, count = _ranks([scores[index] for index in free])
    places = {index: place for place, index in enumerate(free)}

    def by_score(index: int, level: int) -> int:
        return fixed(index) if index in shares else int((ranks[places[index]] > level).sum())

    return max(1, count), by_score


def _ranks(scores: Sequence[NDArray[np.float64]]) -> tuple[list[NDArray[np.float64]], int]:
    """The place of each finite score among all, and how many there are; infinite scores stay as they are.

    Equal scores are told apart by their place in their group, so that groups of equal scores shrink alike.
    """
    within = [np.argsort(np.argsort(-one, kind="stable")) / -max(1, len(one)) for one in scores]
    everything = np.concatenate([*scores, np.zeros(0)])
    finite = np.flatnonzero(np.isfinite(everything))
    order = np.lexsort((np.concatenate([*within, np.zeros(0)])[finite], everything[finite]))
    ranks = everything.copy()
    ranks[finite[order]] = np.arange(len(finite))
    return np.split(ranks, np.cumsum([len(one) for one in scores])[:-1]), len(finite)


def stay(channels: ChannelMap, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Masks of all groups as one mask over `ChannelMap.classes`."""
    kept = np.ones(channels.count, bool)
    for group, mask in zip(channels.groups, masks, strict=True):
        kept[group.channels] = mask
    return kept


def _fail(choice: Wanted, kept: NDArray[np.bool_]) -> None:
    budget = next(one for one in choice.budgets if not one.is_met(kept))
    scanned = ", as far as the scan goes" if choice.losses else ""
    bounds = f"(floor={choice.limits.floor:g}, in multiples of {choice.limits.multiple}{scanned})"
    if kept.all():
        raise TersorError(
            f"nothing to prune: no group may shrink {bounds}; ask for a lower floor or multiple"
            + (", or for less in skip and ratio" if choice.shares else "")
        )
    raise TersorError(
        f"{budget.option} would empty a layer: {budget.share(kept):.3f} of the {budget.noun} remain when every group"
        f" keeps its smallest number of channels {bounds}; ask for {budget.advice}, or a lower floor or multiple"
    )


def strongest(scores: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The ``count`` largest, but none of minus infinity; of equal ones, the first."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask & (scores > -np.inf)
