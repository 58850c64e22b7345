"""Uniformly random measurements of a network's spaces: what the search finds is no fair sample of what there is.

"Is the fastest candidate in the ranker's first tenth" can only be asked of candidates that no ranker has picked. For
each task the options are put into an order that depends on the workload only; measuring its first N, in one run or in
several, measures N that were drawn uniformly, without replacement.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from tersor.targets.algorithms import Options
from tersor.targets.tuning import log
from tersor.targets.tuning.measure import Measurer
from tersor.targets.tuning.option import Option
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.task import Task

BATCH = 8


def uniform_order(task: Task) -> list[Option]:
    """All options of a task, shuffled; the same order in every run."""
    options = list(Options(task.workload, task.target))
    seed = zlib.crc32(repr(task.workload).encode())
    return [options[index] for index in np.random.default_rng(seed).permutation(len(options))]


def sample(
    tasks: Sequence[Task],
    measurer: Measurer,
    count: int,
    log_dir: Path,
    *,
    records: Collection[Record] = (),
    seconds: float | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> int:
    """Measure uniformly random options of each task, each beside the analytic default, and append them to a log.

    Parameters
    ----------
    count
        Options of each task; all of a task that has no more.
    log_dir
        Where to append them, with the purpose ``"random"``.
    records
        Earlier ones; random options that are in them are not measured again.
    seconds
        When to stop at the latest; the tasks take turns, so that all have about as many by then.
    say
        Told of each batch.

    Returns
    -------
    How many options were measured.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    known = {(record.workload, record.option) for record in records if record.purpose == "random"}
    measured = 0
    waiting = {
        task: [one for one in uniform_order(task)[:count] if (task.workload, one) not in known] for task in tasks
    }
    while any(waiting.values()):
        for task, options in waiting.items():
            left = float("inf") if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return measured
            batch, options[:BATCH] = options[:BATCH], []
            if not batch:
                continue

            def keep(outcome: Outcome, task: Task = task) -> None:
                log.append(log_dir, [Record.now(task, outcome, "random")])

            outcomes = measurer.measure(
                task, batch, Options(task.workload, task.target).default, seconds=left, keep=keep
            )
            measured += len(outcomes)
            say(f"{task.location or task.workload}: {len(outcomes)} measured, {len(options)} to go")
    return measured
