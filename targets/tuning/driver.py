"""Tuning as a user asks for it: a graph, a budget and a folder in; measured options for the compiler out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...ir import Graph, TersorError
from ...ir.files import temporary_folder
from ..machines.catalog import native_name, resolve_cpu
from ..machines.target import Cpu, Target
from ..machines.toolchain import find_toolchain
from . import DEFAULT_LOG_DIR
from .extract import extract_tasks
from .log import LogWriter
from .measure import LocalMeasurer, Measurer
from .model import require_xgboost
from .observer import Observer
from .records import Record
from .result import TuningResult
from .scheduler import Budget
from .session import TuningSession
from .task import Task
from .tuned import read_records


def check_measurable(target: Target) -> Cpu:
    """``target``, if it is a processor whose code runs on this machine; raises TersorError otherwise."""
    from ..machines.features import obstacle_here

    processor = resolve_cpu(target)
    obstacle = obstacle_here(processor)
    if obstacle:
        raise TersorError(
            f"{target.name} cannot be measured here ({obstacle}); "
            f"tune on such a machine, or over RPC, or tune for {native_name()}"
        )
    return processor


def load_records(
    target: Cpu,
    log_dir: Path | None,
    *,
    shipped: bool = True,
    say: Callable[[str], None] = lambda message: None,
) -> list[Record]:
    """The records that hold for ``target``, as `read_records` finds them; ``say`` is told what does not, and why."""
    records = read_records(target, log_dir, shipped=shipped)
    for note in records.notes:
        say(note)
    return list(records.all_known())


def tune_graph(
    graph: Graph,
    target: Cpu,
    budget: Budget,
    *,
    log_dir: Path | None = DEFAULT_LOG_DIR,
    records: Sequence[Record] = (),
    measurer: Measurer | None = None,
    observer: Observer | None = None,
    seed: int = 0,
    metaschedule_trials: int = 0,
) -> TuningResult:
    """Tune the kernels of an optimized graph, to which the pass ``layout`` has been applied.

    Parameters
    ----------
    target
        The machine; ``target.cores`` is the number of threads.
    budget
        When to stop at the latest; trials in ``records`` count as spent, but for those that ship.
    log_dir
        Where to append what is measured; None to keep it in memory only.
    records
        From `load_records`.
    measurer
        Builds and times candidates; by default a `LocalMeasurer` for the duration of this call.
    observer
        Is told how it goes on.
    seed
        Of the random picks.
    metaschedule_trials
        Schedules that MetaSchedule may try for each kernel that has no template, on top of the budget.

    Raises
    ------
    TersorError
        When xgboost is missing, or nothing can be measured here.
    """
    require_xgboost()
    own = None
    if measurer is None:
        find_toolchain(target)  # asked before processes are started
        measurer = own = LocalMeasurer()
    try:
        if own is not None:
            own.start()  # its processes import what they need while tasks are extracted and records learned from
        tasks = extract_tasks(graph, target)
        if metaschedule_trials:
            say = (observer or Observer()).say
            records = [*records, *_tune_loops(tasks, measurer, log_dir, metaschedule_trials, seed, say)]
        return TuningSession(
            tasks,
            measurer,
            budget,
            records=records,
            log_dir=log_dir,
            observer=observer,
            seed=seed,
        ).run()
    finally:
        if own is not None:
            own.close()


def _tune_loops(
    tasks: Sequence[Task],
    measurer: Measurer,
    log_dir: Path | None,
    trials: int,
    seed: int,
    say: Callable[[str], None],
) -> list[Record]:
    """Have MetaSchedule search the kernels without a template."""
    from .metaschedule import is_searchable, tune_task

    records: list[Record] = []
    log = LogWriter(log_dir, say)

    def keep(record: Record) -> None:
        records.append(record)
        log.add(record)

    with temporary_folder() as scratch:
        folder = scratch if log_dir is None else log_dir
        for task in filter(is_searchable, tasks):
            tune_task(task, measurer, folder, keep, trials=trials, seed=seed)
    return records
