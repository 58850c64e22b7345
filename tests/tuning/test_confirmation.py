"""Confirmation runs: who is measured again, and that a short time decides some tasks rather than none."""

from __future__ import annotations

import pytest

from tersor.targets.codegen.options import Options
from tersor.targets.tuning.confirmation import ENOUGH_SAMPLES, Confirmation
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.scheduler import Budget, Scheduler
from tersor.targets.tuning.search import SearchOptions, TaskSearch
from tersor.tests.tuning.fakes import conv_tasks

SAMPLE = 3.0  # seconds


def search_with(task, ratios: dict[int, float], samples: int = 1) -> TaskSearch:
    """A task of which options, by number, were measured to take so much of the default's second."""
    search = TaskSearch(task, Options(task.workload, task.target), SearchOptions())
    search.restore([Outcome(search.default, "ok", 1.0, 0.01, 7, 1.0)])
    search.restore(
        [
            Outcome(search.options[number], "ok", ratio, 0.01, 7, 1.0)
            for number, ratio in ratios.items()
            for _ in range(samples)
        ]
    )
    return search


def confirmation_of(searches: list[TaskSearch], seconds: float) -> Confirmation:
    confirmation = Confirmation(searches, Scheduler(searches, Budget(seconds=seconds), clock=lambda: 0.0))
    for search in searches:
        confirmation.spent(search, SAMPLE)
    return confirmation


@pytest.fixture
def searches() -> list[TaskSearch]:
    """Gains of 10, 30, 20 and 0 %, each seen once."""
    return [search_with(task, {1: ratio}) for task, ratio in zip(conv_tasks(4), (0.9, 0.7, 0.8, 1.0), strict=True)]


def test_all_winners_are_confirmed_when_there_is_time(searches):
    ten, thirty, twenty, _ = searches
    confirmation = confirmation_of(searches, 100.0)
    assert confirmation.round() == [thirty, twenty, ten]
    assert confirmation.seconds == pytest.approx(3 * (ENOUGH_SAMPLES - 1) * SAMPLE)


def test_a_short_time_decides_what_promises_most(searches):
    _, thirty, twenty, _ = searches
    assert confirmation_of(searches, 13.0).round() == [thirty, twenty]
    assert confirmation_of(searches, 7.0).round() == [thirty]
    assert confirmation_of(searches, 1.0).round() == [thirty]  # it may be quicker than it was


def test_what_was_measured_often_enough_is_left_alone():
    (task,) = conv_tasks(1)
    assert confirmation_of([search_with(task, {1: 0.8}, samples=ENOUGH_SAMPLES)], 100.0).round() == []
    assert confirmation_of([search_with(task, {1: 0.8}, samples=ENOUGH_SAMPLES - 1)], 4.0).round() != []


def test_winners_are_close_to_the_best(searches):
    (task,) = conv_tasks(1)
    search = search_with(task, {1: 0.8, 2: 0.9, 3: 0.81, 4: 0.805, 5: 0.82})
    assert confirmation_of([search], 100.0).winners(search) == [search.options[number] for number in (1, 4, 3)]
