"""Measurements are repeated while the processors are slower than they have been."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.harness import Schedule, measure
from benchmarks.pace import Pace, pace_of

SCHEDULE = Schedule(rounds=2, block_seconds=0.0, minimum_calls=1, maximum_calls=1, dropped_calls=1, pause_seconds=0.0)


class Rates:
    """Answers with numbers in turn, the last one for ever."""

    def __init__(self, *rates: float) -> None:
        self.rates = list(rates)

    def __call__(self) -> float:
        return self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]


class Counted:
    """A runner that counts its calls."""

    name = "counted"

    def __init__(self) -> None:
        self.calls = 0

    def run(self, inputs: object) -> list[np.ndarray]:
        self.calls += 1
        return []


@pytest.mark.parametrize(
    ("rates", "blocks", "fast"),
    [
        ((100,), 1, True),
        ((100, 95, 92), 1, True),
        ((100, 100, 50, 100), 2, True),  # slow after the first
        ((100, 50, 60, 100), 1, True),  # slow before it
        ((100, 50), 3, False),  # slow for ever
        ((50, 50, 100), 2, True),  # only later is it known how fast they can be
    ],
)
def test_a_block_is_measured_until_the_processors_were_fast(rates: tuple[float, ...], blocks: int, fast: bool) -> None:
    numbers = itertools.count(1)
    pace = Pace(Rates(*rates), pause=lambda seconds: None)
    assert pace.undisturbed(lambda: next(numbers), 3, 0.0) == (blocks, fast)
    assert next(numbers) == blocks + 1


def test_statistics_say_how_many_blocks_had_slow_processors() -> None:
    runner = Counted()
    pace = Pace(Rates(100, 100, 100, 50), pause=lambda seconds: None)
    found = measure([runner], [], SCHEDULE, pace=pace)["counted"]
    assert (found.slow_blocks, found.calls) == (1, 2)
    assert runner.calls == 2 * (1 + SCHEDULE.tries)  # one dropped and one counted call in each


def test_this_machine_has_a_pace() -> None:
    assert pace_of(1) is pace_of(1)
    assert pace_of(1).undisturbed(lambda: "result", 1, 0.0)[0] == "result"


def test_a_schedule_needs_a_try() -> None:
    with pytest.raises(ValueError, match="one try"):
        Schedule(tries=0)
