"""Confirmation runs: what seems fastest is measured again beside the default, since the fastest of many was lucky, too.

An option is used only if enough samples confirm it (see `tersor.targets.tuning.records.best`). Where the time does not
suffice for all tasks, those are decided that promise most for each second; one sample of every task would decide none.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..templates.option import Option
from .records import CONFIRMATIONS, NOISE
from .scheduler import Scheduler
from .search import TaskSearch

WINNERS = 3  # candidates of each task that are measured again
ENOUGH_SAMPLES = 4  # of the best, those of the search included
CLOSE = 0.03  # how much slower than the best a winner may be
TIMED_SHARE = 0.5  # of the time of a batch: the rest is building, and winners have been built


class Confirmation:
    """Which tasks to measure again, and how long that takes.

    Parameters
    ----------
    searches
        One for each task.
    scheduler
        Knows what batches have cost, and what time is left.
    """

    def __init__(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        self._searches = tuple(searches)
        self._scheduler = scheduler
        self._costs: dict[TaskSearch, float] = {}  # seconds of the last sample

    @property
    def waiting(self) -> list[TaskSearch]:
        """Tasks whose best seems faster than the default and was not measured often enough to tell."""
        return [
            one
            for one in self._searches
            if one.ratio(one.best) < 1 - NOISE and one.samples(one.best) < ENOUGH_SAMPLES  # NaN before anything ran
        ]

    @property
    def seconds(self) -> float:
        """What the confirmation of all tasks that wait is going to take."""
        return sum((ENOUGH_SAMPLES - one.samples(one.best)) * self._cost(one) for one in self.waiting)

    def round(self) -> list[TaskSearch]:
        """The tasks to measure now, the most promising first: as many as the time suffices to decide, at least one.

        The samples of one task are apart in time, so that not all of them fall into one disturbance.
        """
        ordered = sorted(self.waiting, key=lambda one: _promised_seconds(one) / self._cost(one), reverse=True)
        left = self._scheduler.seconds_left
        chosen = []
        for search in ordered:
            seconds = self._samples_to_decide(search) * self._cost(search)
            if seconds <= left:
                left -= seconds
                chosen.append(search)
        return chosen or ordered[:1]

    def winners(self, search: TaskSearch) -> list[Option]:
        """The options of a task to measure."""
        limit = search.ratio(search.best) * (1 + CLOSE)
        return [one for one in search.ranked() if search.ratio(one) <= limit and one != search.default][:WINNERS]

    def spent(self, search: TaskSearch, seconds: float) -> None:
        """Take note of a sample."""
        self._costs[search] = seconds

    def _cost(self, search: TaskSearch) -> float:
        """Seconds of one sample."""
        return self._costs.get(search, TIMED_SHARE * self._scheduler.cost(search))

    def _samples_to_decide(self, search: TaskSearch) -> int:
        return max(1, 1 + CONFIRMATIONS - search.samples(search.best))


def _promised_seconds(search: TaskSearch) -> float:
    """Seconds of the model's latency that a task's best seems to save."""
    return search.task.weight * search.default_seconds * (1 - search.ratio(search.best))
