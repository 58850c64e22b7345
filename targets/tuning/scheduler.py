"""Which task gets the next batch: the one expected to cut the model's latency most for each second of tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .model import Ranker
from .search import TaskSearch

SETTLED = 2e-3  # share of the model's time: expected gains below this are not worth another batch
FIRST_COST = 1.0  # seconds that a batch is assumed to take before one was measured …
FIRST_CANDIDATE = 0.5  # … and one candidate
FIRST_SHARE = 0.5  # of the time left that the first batches of all tasks may take together
FEWEST_FIRST = 2  # candidates of a first batch: the default, and one to replace it


@dataclass(frozen=True)
class Budget:
    """When to stop at the latest; None stands for no limit.

    Attributes
    ----------
    trials
        Candidates to measure.
    seconds
        Time to spend, from the start of the session on.
    """

    trials: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 0:
            raise ValueError(f"trials must not be negative, got {self.trials}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


class Scheduler:
    """Shares a budget among tasks.

    Parameters
    ----------
    searches
        One for each task.
    budget
        When to stop at the latest.
    reserved
        Seconds of the budget to leave for checking the winners; may be set anew as winners come.
    clock
        Seconds, for tests.
    """

    def __init__(
        self,
        searches: Sequence[TaskSearch],
        budget: Budget,
        reserved: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._searches = tuple(searches)
        self._budget = budget
        self.reserved = reserved
        self._clock = clock
        self._started = clock()
        self._costs: dict[TaskSearch, list[float]] = {}
        self._tried = 0  # candidates of the batches in `_costs`; `trials` counts others, too
        self._is_first = True
        self.trials = 0
        self.reason = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def seconds_left(self) -> float:
        """Seconds of the budget that remain, those reserved included; infinite without a limit."""
        return math.inf if self._budget.seconds is None else self._budget.seconds - self.elapsed

    @property
    def seconds_to_search(self) -> float:
        """Seconds of the budget that remain for the search."""
        return self.seconds_left - self.reserved

    @property
    def trials_left(self) -> float:
        """Trials of the budget that remain; infinite without a limit."""
        return math.inf if self._budget.trials is None else self._budget.trials - self.trials

    @property
    def model_seconds(self) -> float:
        """Sum over all tasks of their best time so far, each as often as the model calls it; NaN until all have one."""
        return sum(search.task.weight * search.best_seconds for search in self._searches if not search.failing)

    def spent(self, search: TaskSearch, seconds: float, trials: int) -> None:
        """Take note of a batch; the time of the first, which waits for processes to start, tells nothing of others."""
        self.trials += trials
        if self._is_first:
            self._is_first = False
            return
        self._costs.setdefault(search, []).append(seconds)
        self._tried += trials

    def batch_limit(self, search: TaskSearch) -> float:
        """How many candidates the next batch of a task may have.

        The very first batch is one candidate: there is a result as soon as processes have started. Where time is short
        the first batches of the other tasks are small, too, so that every task gets one.
        """
        if self._is_first:
            return min(self.trials_left, 1)
        fresh = self._fresh
        if search not in fresh or math.isinf(self.seconds_left):
            return self.trials_left
        spent = sum(map(sum, self._costs.values()))
        each = spent / self._tried if self._tried else FIRST_CANDIDATE
        affordable = FIRST_SHARE * self.seconds_to_search / len(fresh) / max(each, 1e-3)
        return min(self.trials_left, max(FEWEST_FIRST, int(affordable)))

    def next(self, ranker: Ranker) -> TaskSearch | None:
        """The task to measure next; None when the budget is spent or nothing is left to gain: see `reason`."""
        chosen, self.reason = self._choose(ranker)
        return chosen

    def _choose(self, ranker: Ranker) -> tuple[TaskSearch | None, str]:
        if self.trials_left <= 0:
            return None, "all trials are spent"
        fresh = self._fresh
        others = [one for one in self._searches if not one.done and not one.fresh]
        if self.seconds_to_search <= self._cheapest(fresh + others):
            return None, "the time is spent"
        if fresh:
            return max(fresh, key=lambda one: one.task.weight * _estimated_seconds(one)), ""
        gains = {one: self._saving(one, ranker) for one in others}
        if not gains or sum(gains.values()) <= SETTLED * self.model_seconds:
            return None, "nothing more to gain"
        return max(gains, key=lambda one: gains[one] / self.cost(one)), ""

    @property
    def _fresh(self) -> list[TaskSearch]:
        """Tasks that have not had their first batch, with a candidate beside the default."""
        return [one for one in self._searches if not one.done and one.fresh]

    def _saving(self, search: TaskSearch, ranker: Ranker) -> float:
        """Seconds of the model's latency that the next batch of a task is expected to save."""
        return search.task.weight * search.best_seconds * search.expected_gain(ranker)

    def cost(self, search: TaskSearch) -> float:
        """Seconds that the next batch of a task takes: as many as its last, or as those of others."""
        own = self._costs.get(search)
        if own:
            return own[-1]
        others = [costs[-1] for costs in self._costs.values()]
        return sum(others) / len(others) if others else FIRST_COST

    def _cheapest(self, searches: Sequence[TaskSearch]) -> float:
        """Seconds that any next batch takes at least; a batch that would run over the time is not begun."""
        if not self._costs:
            return 0.0
        return min((self.cost(one) for one in searches), default=0.0)


def _estimated_seconds(search: TaskSearch) -> float:
    """What the analytic model says about the default."""
    (features,) = search.features([search.default])
    return 2.0 ** features["estimate"]
