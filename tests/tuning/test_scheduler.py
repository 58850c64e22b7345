"""Which task comes next, and when it is enough."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tersor.targets.codegen.options import Options
from tersor.targets.tuning.model import Ranker
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.scheduler import Budget, Scheduler
from tersor.targets.tuning.search import SearchOptions, TaskSearch
from tersor.tests.tuning.fakes import conv_task


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def searches_of(*weights: int) -> list[TaskSearch]:
    task = conv_task(256, 14, 256)
    return [
        TaskSearch(replace(task, weight=weight), Options(task.workload, task.target), SearchOptions())
        for weight in weights
    ]


def first_batch(search: TaskSearch, seconds: float = 1e-3, best: float = 1.0) -> None:
    """Measure the first batch; all take ``seconds`` but the last, which takes ``best`` of that."""
    batch = search.propose(Ranker(), np.random.default_rng(0))
    times = [seconds] * (len(batch) - 1) + [seconds * best]
    search.record([Outcome(o, "ok", t, baseline=seconds) for o, t in zip(batch, times, strict=True)], Ranker())


def test_every_task_is_timed_first_the_largest_before_the_others():
    searches = searches_of(1, 5, 2)
    scheduler = Scheduler(searches, Budget())
    order = []
    for _ in range(3):
        search = scheduler.next(Ranker())
        first_batch(search)
        scheduler.spent(search, 1.0, 8)
        order.append(search.task.weight)
    assert order == [5, 2, 1]


def test_the_very_first_batch_is_one_default():
    big, small = searches_of(3, 1)
    scheduler = Scheduler([big, small], Budget())
    assert scheduler.next(Ranker()) is big and scheduler.batch_limit(big) == 1
    batch = big.propose(Ranker(), np.random.default_rng(0), 1)
    assert batch == [big.default]
    big.record([Outcome(big.default, "ok", 1e-3, baseline=1e-3)], Ranker())
    scheduler.spent(big, 5.0, 1)
    assert big.fresh and scheduler.next(Ranker()) is big  # the rest of its first batch
    assert scheduler.batch_limit(big) == math.inf
    rest = big.propose(Ranker(), np.random.default_rng(0))
    assert big.default not in rest
    assert {one.template for one in big.options} == {one.template for one in (*batch, *rest)}


def test_time_goes_where_it_saves_most():
    light, heavy = searches_of(1, 10)
    for search in (light, heavy):
        first_batch(search)
    scheduler = Scheduler([light, heavy], Budget())
    assert scheduler.next(Ranker()) is heavy
    scheduler.spent(light, 9.0, 0)  # processes had to start
    scheduler.spent(light, 1.0, 8)
    scheduler.spent(heavy, 1000.0, 8)  # building its candidates takes very long
    assert scheduler.next(Ranker()) is light


def test_slow_kernels_weigh_more():
    quick, slow = searches_of(1, 1)
    first_batch(quick, 1e-4)
    first_batch(slow, 1e-2)
    assert Scheduler([quick, slow], Budget()).next(Ranker()) is slow


def test_model_seconds_are_weighted_sums():
    searches = searches_of(1, 3)
    scheduler = Scheduler(searches, Budget())
    assert math.isnan(scheduler.model_seconds)
    first_batch(searches[0], 1e-3)
    first_batch(searches[1], 2e-3, best=0.5)
    assert scheduler.model_seconds == pytest.approx(4e-3)


def test_trials_end_it():
    searches = searches_of(1)
    scheduler = Scheduler(searches, Budget(trials=8))
    first_batch(scheduler.next(Ranker()))
    scheduler.spent(searches[0], 1.0, 8)
    assert scheduler.next(Ranker()) is None
    assert scheduler.reason == "all trials are spent"


def test_time_ends_it_before_a_batch_that_would_not_fit():
    clock = Clock()
    searches = searches_of(1, 1)
    scheduler = Scheduler(searches, Budget(seconds=10.0), reserved=2.0, clock=clock)
    first_batch(scheduler.next(Ranker()))
    scheduler.spent(searches[0], 9.0, 8)  # processes had to start: other batches need not take so long
    assert scheduler.next(Ranker()) is not None
    clock.now = 3.0
    scheduler.spent(searches[0], 3.0, 8)
    assert scheduler.next(Ranker()) is not None
    clock.now = 5.5  # 2.5 s are left before the reserve, and a batch takes 3
    assert scheduler.next(Ranker()) is None
    assert scheduler.reason == "the time is spent"
    assert scheduler.seconds_left == 4.5


def test_nothing_to_gain_ends_it():
    (search,) = searches_of(1)
    scheduler = Scheduler([search], Budget())
    while (one := scheduler.next(Ranker())) is not None:
        batch = one.propose(Ranker(), np.random.default_rng(0))
        one.record([Outcome(o, "ok", 1e-3, baseline=1e-3) for o in batch], Ranker())
        scheduler.spent(one, 1.0, len(batch))
    assert scheduler.reason == "nothing more to gain"
    assert search.trials <= 32


def test_no_tasks():
    scheduler = Scheduler([], Budget(seconds=1.0))
    assert scheduler.next(Ranker()) is None
    assert scheduler.model_seconds == 0


def test_budget_is_checked():
    with pytest.raises(ValueError, match="trials must not be negative"):
        Budget(trials=-1)
    with pytest.raises(ValueError, match="seconds must be positive"):
        Budget(seconds=0)
