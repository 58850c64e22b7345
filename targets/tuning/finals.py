"""The finals: what seems fastest is measured again beside the default, for the fastest of many timings was lucky, too.

An option is used only when enough visits confirm it (see `tersor.targets.tuning.records.best`). Where the time does not
suffice for all tasks, those are decided that promise most for each second; one visit to every task would decide none.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..templates.option import Option
from .records import CONFIRMATIONS, NOISE
from .scheduler import Scheduler
from .search import TaskSearch

FINALISTS = 3  # candidates of each task that are measured again
FINAL_VISITS = 4  # of the best, those of the search included
CLOSE = 0.03  # how much slower than the best a finalist may be
TIMED_SHARE = 0.5  # of the time of a batch: the rest is building, and finalists have been built


class Finals:
    """Which tasks to visit again, and how long that takes.

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
        self._costs: dict[TaskSearch, float] = {}  # seconds of the last visit

    @property
    def waiting(self) -> list[TaskSearch]:
        """Tasks whose best seems faster than the default and was not measured often enough to tell."""
        return [
            one
            for one in self._searches
            if one.ratio(one.best) < 1 - NOISE and one.visits(one.best) < FINAL_VISITS  # NaN before anything ran
        ]

    @property
    def seconds(self) -> float:
        """What the finals of all tasks that wait are going to take."""
        return sum((FINAL_VISITS - one.visits(one.best)) * self._cost(one) for one in self.waiting)

    def round(self) -> list[TaskSearch]:
        """The tasks to visit now, the most promising first: as many as the time left suffices to decide, at least one.

        The visits of one task are apart in time, so that not all of them fall into one disturbance.
        """
        ordered = sorted(self.waiting, key=lambda one: _promised_seconds(one) / self._cost(one), reverse=True)
        left = self._scheduler.seconds_left
        chosen = []
        for search in ordered:
            seconds = self._visits_to_decide(search) * self._cost(search)
            if seconds <= left:
                left -= seconds
                chosen.append(search)
        return chosen or ordered[:1]

    def finalists(self, search: TaskSearch) -> list[Option]:
        """The options of a task to measure."""
        limit = search.ratio(search.best) * (1 + CLOSE)
        return [one for one in search.ranked() if search.ratio(one) <= limit and one != search.default][:FINALISTS]

    def spent(self, search: TaskSearch, seconds: float) -> None:
        """Take note of a visit."""
        self._costs[search] = seconds

    def _cost(self, search: TaskSearch) -> float:
        """Seconds of one visit."""
        return self._costs.get(search, TIMED_SHARE * self._scheduler.cost(search))

    def _visits_to_decide(self, search: TaskSearch) -> int:
        return max(1, 1 + CONFIRMATIONS - search.visits(search.best))


def _promised_seconds(search: TaskSearch) -> float:
    """Seconds of the model's latency that a task's best seems to save."""
    return search.task.weight * search.default_seconds * (1 - search.ratio(search.best))
