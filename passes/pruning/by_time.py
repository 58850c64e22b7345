"""Counts of channels by the clock: of all that take the asked time, those that keep most of the importance.

What a network keeps is the product, over its layers, of the share of importance that each keeps: so half of two layers
counts as a quarter of one, and no layer is emptied because it is slow. With ``scope=global``, each step takes channels
from the group where this product falls least for a microsecond that the time model (`staircase`) wins, down to any of
its counts, until the time is low enough: so a plateau of a staircase is crossed at once, or not entered. What the last
step won too much is then given back where it brings most. With ``scope=layer`` the model's time is one more budget of
`select`. The product, and the greedy search on it, are those by which ranks are chosen in Zhang et al., "Accelerating
Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016, section 3.3.

The model multiplies what it measured layer by layer, so the network is measured as a whole, too. Where it takes more or
less than was asked for, by more than `TOLERANCE`, the model is asked for that much less or more, and again. Once one
answer was too fast and one too slow, it is asked for what lies between: so a model that is far off is put right, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...ir import Graph, TersorError
from ..base import Latency
from ..report import Staircase
from .budgets import Remainder
from .groups import ChannelMap
from .select import Limits, Masks, Scope, Wanted, select, stay, strongest
from .shrink import shrunk
from .staircase import Counts, TimeModel, counts_of, measure

TOLERANCE = 0.03  # relative, of the measured time
_CORRECTIONS = 6
_NANOSECONDS = 1e9
_CERTAIN = 1e6  # times the largest finite importance: stands for an infinite one
_NOTHING = 1e-12  # stands for a share of 0
_FREE = 1e-9  # seconds: what a change costs that costs nothing


@dataclass
class Clock:
    """Chooses what stays by measured time.

    Attributes
    ----------
    original
        What the time is a share of.
    graph, channels
        The same without fused ops, and its groups.
    latency
        Measures.
    limits
        How far groups may shrink.
    progress
        Told what is left to be measured.
    skipped
        Indices of groups that keep all their channels.
    """

    original: Graph
    graph: Graph
    channels: ChannelMap
    latency: Latency
    limits: Limits
    progress: Callable[[str], None]
    skipped: frozenset[int] = frozenset()
    notes: list[str] = field(default_factory=list)
    _model: TimeModel | None = None
    _exhausted: bool = False  # whether the last search found nothing more to take away

    @property
    def model(self) -> TimeModel:
        """Measured when it is asked for first."""
        if self._model is None:
            choices = [
                (group.size,) if index in self.skipped else counts_of(group, self.limits)
                for index, group in enumerate(self.channels.groups)
            ]
            self._model = measure(self.graph, self.channels, choices, self.latency, self.progress)
        return self._model

    def choose(self, scores: Sequence[NDArray[np.float64]], wanted: Wanted, present: Masks, share: float) -> Masks:
        """Choose what stays, for a share of the original's time.

        Parameters
        ----------
        scores
            For each group an array ``[group.size]``, larger for more important channels.
        wanted
            What else must hold.
        present
            The channels that are still there.

        Raises
        ------
        TersorError
            When the share, or another budget, cannot be met.
        """
        option = f"latency={share:g}"
        choose = (
            self._same_share_everywhere(scores, wanted, present, option)
            if wanted.scope is Scope.LAYER
            else self._most_important(scores, wanted, present)
        )
        masks = choose(share)
        measured = self._measured_share(masks)
        attempts, asked, last = [(masks, measured)], share, measured
        known = {0.0: 0.0, 1.0: 1.0}  # shares that the network takes, by those that the model was asked for
        while abs(last / share - 1) > TOLERANCE and len(attempts) <= _CORRECTIONS:
            if last > share and self._exhausted:
                raise TersorError(
                    f"{option} would empty a layer: {last:.3f} of the measured time remain when groups keep as few"
                    f" channels as they may (floor={self.limits.floor:g}, in multiples of {self.limits.multiple}); ask"
                    " for more latency, or a lower floor or multiple"
                )
            known[asked] = last
            asked = _next_share(known, asked, share)
            try:
                masks = choose(asked)
            except TersorError:  # the model says that less cannot be
                break
            last = self._measured_share(masks)
            attempts.append((masks, last))
        masks, measured = min(attempts, key=lambda one: abs(one[1] / share - 1))
        missed = "" if abs(measured / share - 1) <= TOLERANCE else f", more than {TOLERANCE:.0%} off"
        tries = "" if len(attempts) == 1 else f", the best of {len(attempts)} attempts"
        self.notes.append(f"{option}: {measured:.3f} of the time measured{tries}{missed}")
        return masks

    def _measured_share(self, masks: Masks) -> float:
        """Of the original's time, what the network takes without the channels that go; both are timed alternately."""
        self.progress("the whole network")
        pair = self.latency.compare(self.original, shrunk(self.graph, self.channels, stay(self.channels, masks)))
        return pair.after / pair.before

    def staircases(self, masks: Masks, names: Sequence[str]) -> tuple[Staircase, ...]:
        """For the report: what was measured of each group that may shrink, and what was chosen."""
        model, found = self.model, []
        for index, (group, mask) in enumerate(zip(self.channels.groups, masks, strict=True)):
            if index not in self.skipped:
                steps = tuple((count * group.width, seconds) for count, seconds in model.staircase(index))
                found.append(Staircase(names[index], steps, int(mask.sum()) * group.width))
        return tuple(found)

    def _same_share_everywhere(
        self, scores: Sequence[NDArray[np.float64]], wanted: Wanted, present: Masks, option: str
    ) -> Callable[[float], Masks]:
        def count(kept: NDArray[np.bool_]) -> int:
            counts = [int(kept[group.channels].sum()) for group in self.channels.groups]
            return round(self.model.seconds(counts) * _NANOSECONDS)

        whole = count(np.ones(self.channels.count, bool))

        def choose(asked: float) -> Masks:
            budget = Remainder(option, "measured time", asked, count, whole, "more latency")
            return select(self.channels, scores, replace(wanted, budgets=(*wanted.budgets, budget)), present)

        return choose

    def _most_important(
        self, scores: Sequence[NDArray[np.float64]], wanted: Wanted, present: Masks
    ) -> Callable[[float], Masks]:
        there = [np.where(mask, one, -np.inf) for mask, one in zip(present, scores, strict=True)]
        most = [int(mask.sum()) for mask in select(self.channels, scores, wanted, present)]
        choices = [
            (count,) if index in wanted.shares else tuple(one for one in known if one <= count) or (count,)
            for index, (known, count) in enumerate(zip(self.model.choices, most, strict=True))
        ]
        whole = self.model.seconds([group.size for group in self.channels.groups])
        worth = [_worth(one, len(group.layers)) for one, group in zip(there, self.channels.groups, strict=True)]

        def choose(asked: float) -> Masks:
            search = _Search(self.model, choices, worth)
            counts = search.run(asked * whole)
            self._exhausted = search.exhausted
            return [strongest(one, count) for one, count in zip(there, counts, strict=True)]

        return choose


def _next_share(known: Mapping[float, float], last: float, wanted: float) -> float:
    """What to ask the model for next.

    Parameters
    ----------
    known
        Measured shares of the time by those that the model was asked for.
    last
        That which it was asked for last.
    wanted
        The measured share.
    """
    fast = max(one for one in known.items() if one[1] <= wanted)
    slow = min(one for one in known.items() if one[1] > wanted and one[0] > fast[0])
    scaled = last * wanted / known[last]
    if fast[0] < scaled < slow[0]:
        return scaled
    return fast[0] + (slow[0] - fast[0]) * (wanted - fast[1]) / (slow[1] - fast[1])


class _Search:
    """Counts of all groups, made smaller and larger step by step."""

    def __init__(self, model: TimeModel, choices: Sequence[Counts], worth: Sequence[NDArray[np.float64]]) -> None:
        self._model, self._choices, self._worth = model, choices, worth
        self._counts = [one[-1] for one in choices]
        self._time = model.seconds(self._counts)
        self.exhausted = False  # whether nothing was left to take away

    def run(self, seconds: float) -> list[int]:
        """Counts for which the model says ``seconds``, nearly; the smallest ones where no counts are so fast."""
        offers = {group: self._cheapest(group) for group in range(len(self._choices))}
        while self._time > seconds:
            group, (price, count) = min(offers.items(), key=lambda one: one[1])
            if price == np.inf:
                self.exhausted = True
                break
            self._set(group, count)
            offers.update((other, self._cheapest(other)) for other in self._model.neighbours(group))
        while offer := self._best_gift(seconds):
            self._set(*offer)
        if not self.exhausted and self._time < seconds * (1 - TOLERANCE / 2):
            self._exchange(seconds)
        return self._counts

    def _set(self, group: int, count: int) -> None:
        self._counts[group] = count
        self._time = self._model.seconds(self._counts)

    def _changes(self, group: int) -> Mapping[int, float]:
        """Seconds that other counts of a group add."""
        now, found = self._counts[group], {}
        before = self._model.of_group(group, self._counts)
        for count in self._choices[group]:
            self._counts[group] = count
            found[count] = self._model.of_group(group, self._counts) - before
        self._counts[group] = now
        return found

    def _cheapest(self, group: int) -> tuple[float, int]:
        """The lower count that loses least for a second that it wins, after what it loses for that."""
        now, worth = self._counts[group], self._worth[group]
        offers = [
            ((worth[now] - worth[count]) / -added, count)
            for count, added in self._changes(group).items()
            if count < now and added < 0
        ]
        return min(offers, default=(np.inf, now))

    def _best_gift(self, seconds: float) -> tuple[int, int] | None:
        """The group and higher count that bring most for a second, of those that there is time for."""
        best, most = None, 0.0
        for group, worth in enumerate(self._worth):
            now = self._counts[group]
            for count, added in self._changes(group).items():
                if count > now and self._time + added <= seconds:
                    gain = float(worth[count] - worth[now]) / max(added, _FREE)
                    if gain > most:
                        best, most = (group, count), gain
        return best

    def _exchange(self, seconds: float) -> None:
        """Give one group its next count and take one step from another, if that loses least of what comes nearer.

        Steps of large groups are coarse, so that what is left may be less than any step up.
        """
        now, time = list(self._counts), self._time
        found = []
        for group, up in self._neighbours_of(+1):
            for other, down in self._neighbours_of(-1):
                if group != other:
                    self._counts[group], self._counts[other] = up, down
                    gap = abs(self._model.seconds(self._counts) - seconds)
                    lost = self._worth[other][now[other]] - self._worth[other][down]
                    gained = self._worth[group][up] - self._worth[group][now[group]]
                    if gap < (seconds - time) / 2:
                        found.append((float(lost - gained), gap, list(self._counts)))
                    self._counts[group], self._counts[other] = now[group], now[other]
        if found:
            *_, self._counts = min(found)
            self._time = self._model.seconds(self._counts)

    def _neighbours_of(self, step: int) -> list[tuple[int, int]]:
        """Each group that has a count above (1) or below (-1) its own, and that count."""
        places = [choices.index(count) + step for choices, count in zip(self._choices, self._counts, strict=True)]
        return [
            (group, choices[place])
            for group, (choices, place) in enumerate(zip(self._choices, places, strict=True))
            if 0 <= place < len(choices)
        ]


def _worth(scores: NDArray[np.float64], layers: int) -> NDArray[np.float64]:
    """Logarithm of what the strongest n channels keep in ``layers`` layers that make them, for n from 0 to all.

    Scores below 0 are counted from the least one.
    """
    there = np.sort(scores[scores > -np.inf])[::-1]
    finite = there[np.isfinite(there)]
    certain = _CERTAIN * (1 + np.abs(finite).max(initial=0.0))
    kept = np.cumsum(np.minimum(there, certain) - min(0.0, finite.min(initial=0.0)))
    shares = np.concatenate([[0.0], kept / kept[-1] if kept.size and kept[-1] else np.ones(len(kept))])
    return layers * np.log(np.maximum(shares, _NOTHING))
