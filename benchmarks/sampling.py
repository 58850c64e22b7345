"""Uniformly random measurements of a network's spaces: what the search finds is no fair sample of what there is.

"Is the fastest candidate in the ranker's first tenth" can only be asked of candidates that no ranker has picked. For
each task the options are put into an order that depends on the workload only; measuring its first N, in one run or in
several, measures N that were drawn uniformly, without replacement. Those that seem the fastest of a task are then
measured twice more: which of them is, one timing does not tell.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from tersor.targets.codegen.options import Options
from tersor.targets.templates.option import Option
from tersor.targets.tuning import log
from tersor.targets.tuning.examples import typical_seconds
from tersor.targets.tuning.measure import Measurer
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Purpose, Record
from tersor.targets.tuning.task import Task

BATCH = 8
CLOSE = 0.05  # how much slower than a task's fastest a candidate may be that is measured again
SAMPLES = 3  # of those, the first included


def uniform_order(task: Task) -> list[Option]:
    """All options of a task, shuffled; the same order in every run."""
    options = list(Options(task.workload, task.target))
    seed = zlib.crc32(repr(task.workload).encode())
    return [options[index] for index in np.random.default_rng(seed).permutation(len(options))]


class Sampler:
    """Measures uniformly random options of tasks, each beside the analytic default, and appends them to a log.

    Parameters
    ----------
    tasks
        What is sampled.
    measurer
        Builds and times candidates; not closed here.
    count
        Options of each task; all of a task that has no more.
    log_dir
        Where to append them: with the purpose ``"random"``, and ``"final"`` when they are measured again.
    records
        Earlier ones; random options that are in them are not drawn again.
    seconds
        When to stop at the latest, from now on; the tasks take turns, so that all have about as many by then.
    say
        Told of each batch.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        measurer: Measurer,
        count: int,
        log_dir: Path,
        *,
        records: Collection[Record] = (),
        seconds: float | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._measurer = measurer
        self._log_dir = log_dir
        self._deadline = float("inf") if seconds is None else time.monotonic() + seconds
        self._say = say
        self._drawn = {task: uniform_order(task)[:count] for task in tasks}
        self._known = {(record.workload, record.option) for record in records if record.purpose == "random"}
        self._samples: dict[Task, dict[Option, list[Outcome]]] = {task: defaultdict(list) for task in tasks}
        of_workload = {task.workload: task for task in tasks}
        for record in records:
            if (record.workload, record.option) in self._known and record.workload in of_workload:
                self._samples[of_workload[record.workload]][record.option].append(record.outcome)

    def run(self) -> int:
        """Measure until all is drawn and the fastest are confirmed, or the time is over; how many were drawn."""
        drawn = self._draw()
        for _ in range(SAMPLES - 1):
            for task in self._drawn:
                self._measure(task, self._unconfirmed(task), "final")
        return drawn

    def _draw(self) -> int:
        drawn = 0
        waiting = {
            task: [one for one in options if (task.workload, one) not in self._known]
            for task, options in self._drawn.items()
        }
        while any(waiting.values()) and self._left > 0:
            for task, options in waiting.items():
                batch, options[:BATCH] = options[:BATCH], []
                measured = self._measure(task, batch, "random")
                drawn += measured
                if measured:
                    self._say(f"{task.location or task.workload}: {measured} measured, {len(options)} to go")
        return drawn

    def _unconfirmed(self, task: Task) -> list[Option]:
        """The fastest options of a task, and those too close to tell, that were measured less than `SAMPLES` times."""
        samples = {option: [one for one in some if one.ok] for option, some in self._samples[task].items()}
        seconds = typical_seconds({option: ran for option, ran in samples.items() if ran})
        limit = (1 + CLOSE) * min(seconds.values(), default=0.0)
        return [one for one, time in seconds.items() if time <= limit and len(samples[one]) < SAMPLES]

    @property
    def _left(self) -> float:
        """Seconds."""
        return self._deadline - time.monotonic()

    def _measure(self, task: Task, options: Sequence[Option], purpose: Purpose) -> int:
        """Measure some options of a task while there is time; how many were."""
        if not options or self._left <= 0:
            return 0

        def keep(outcome: Outcome) -> None:
            self._samples[task][outcome.option].append(outcome)
            log.append(self._log_dir, [Record.now(task, outcome, purpose)])

        default = Options(task.workload, task.target).default
        return len(self._measurer.measure(task, options, default, seconds=self._left, keep=keep))
