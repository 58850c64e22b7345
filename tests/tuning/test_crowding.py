"""Whether others were using the processors: by clocks that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tersor.targets.tuning.crowding import WINDOW, Crowding, ProcessorTime
from tersor.targets.tuning.measured_latency import MeasuredLatency
from tersor.targets.tuning.times import KeptTimes
from tersor.tests.passes.test_referee import BIG, Program


class Clocks:
    """Each reading is ``step`` seconds of the wall after the one before; ``own`` and ``others`` use processors."""

    def __init__(self, own: float, others: float, step: float = 2 * WINDOW) -> None:
        self.own, self.others, self.step = own, others, step
        self.wall = 0.0

    def __call__(self) -> ProcessorTime:
        self.wall += self.step
        return ProcessorTime(self.wall, (self.own + self.others) * self.wall, self.own * self.wall)


@pytest.mark.parametrize(
    ("threads", "others", "crowded"), [(2, 0.1, False), (2, 0.5, True), (1, 1.1, False), (1, 1.5, True)]
)
def test_others_crowd_where_they_leave_too_few_processors(threads: int, others: float, crowded: bool):
    crowding = Crowding(threads, 2, Clocks(threads, others))
    with crowding.watched():
        pass
    assert crowding.crowded == crowded


def test_moments_are_added_up():
    crowding = Crowding(2, 2, Clocks(2, 2, WINDOW / 4))
    found = []
    for _ in range(5):
        with crowding.watched():
            pass
        found.append(crowding.crowded)
    assert found == [False, False, False, True, True]


def test_times_of_a_crowded_machine_are_not_kept(tmp_path: Path):
    for others, kept in ((2.0, False), (0.0, True)):
        times = KeptTimes(tmp_path / "times", "machine")
        compile = cast(Any, lambda graphs: list(map(Program, graphs)))
        latency = MeasuredLatency(compile, times, Crowding(1, 1, Clocks(1, others)))
        assert latency.graph_seconds(BIG) > 0
        assert (tmp_path / "times").exists() == kept


def test_the_system_counts_what_this_process_does():
    before = ProcessorTime.now()
    while (after := ProcessorTime.now()).wall - before.wall < WINDOW:
        pass
    assert 0 < after.own - before.own <= after.all - before.all + 0.05
