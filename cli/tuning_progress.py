"""How tuning is shown: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..targets.tuning.observer import Observer
from ..targets.tuning.result import BatchReport, TaskResult, TuningResult
from ..targets.tuning.scheduler import Scheduler
from ..targets.tuning.search import TaskSearch
from .tables import new_table

ROWS = 16  # tasks in the live table: the most expensive ones
MOST_LOCATION = 28  # characters of a module path


class Lines(Observer):
    """An observer that prints one line a batch.

    Parameters
    ----------
    console
        Where to print; standard error if omitted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._scheduler: Scheduler | None = None

    def started(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        candidates = sum(len(search.options) for search in searches)
        known = sum(search.trials for search in searches)
        self._print(f"{len(searches)} tasks, {candidates} candidates, {known} of them measured before")

    def batch(self, search: TaskSearch, report: BatchReport) -> None:
        assert self._scheduler is not None
        self._print(
            f"{self._scheduler.elapsed:6.1f} s  {self._scheduler.trials} trials  "
            f"{name_of(search)}: {milliseconds(search.best_seconds)} ms, {gain(search)} of the default"
            f"{batch_quality(report)}"
        )

    def say(self, message: str) -> None:
        self._print(message)

    def finished(self, result: TuningResult) -> None:
        self._print(summary(result))

    def _print(self, message: str) -> None:
        self._console.print(message, markup=False)


class LiveTable(Observer):
    """An observer that keeps a table of the most expensive tasks on the screen.

    Parameters
    ----------
    console
        A terminal; standard error if omitted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._searches: Sequence[TaskSearch] = ()
        self._scheduler: Scheduler | None = None
        self._last = ""

    def started(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        self._searches, self._scheduler = searches, scheduler
        self._live = Live(self._view(), console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def batch(self, search: TaskSearch, report: BatchReport) -> None:
        self._last = f"{name_of(search)}: {report.trials} candidates{batch_quality(report)}"
        if self._live is not None:
            self._live.update(self._view(), refresh=True)

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)

    def finished(self, result: TuningResult) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._console.print(results_table(result))
        self._console.print(summary(result), markup=False, soft_wrap=True)

    def _view(self) -> RenderableType:
        return Group(live_table(self._searches, self._scheduler), Text(self._last, style="dim"))


def observer() -> Lines | LiveTable:
    """What suits standard error."""
    console = Console(stderr=True, highlight=False)
    return LiveTable(console) if console.is_terminal else Lines()


def live_table(searches: Sequence[TaskSearch], scheduler: Scheduler | None) -> Table:
    """The tasks that take most of the model's time, as far as they were timed."""
    timed = [search for search in searches if search.best_seconds > 0]
    whole = sum(map(_weighted, timed)) or 1.0
    table = new_table(
        "task", "uses", "share", "best ms", "gain", "trials", "GFLOP/s", title=_headline(timed, scheduler)
    )
    for search in sorted(timed, key=_weighted, reverse=True)[:ROWS]:
        table.add_row(
            name_of(search),
            str(search.task.weight),
            f"{_weighted(search) / whole:.0%}",
            milliseconds(search.best_seconds),
            gain(search),
            f"{search.trials}/{len(search.options)}",
            gflops(search.task.macs, search.best_seconds),
            style="dim" if search.done else "",
        )
    return table


def results_table(result: TuningResult) -> Table:
    """What came of each task, the most expensive first."""
    whole = result.tuned_seconds or 1.0
    table = new_table(
        "task",
        "uses",
        "share",
        "ms",
        "gain",
        "trials",
        "failed",
        "GFLOP/s",
        title="tuned kernels; `tersor log best` shows the options in use",
    )
    for one in sorted(result.tasks, key=_cost, reverse=True):
        if not one.seconds > 0:
            continue
        table.add_row(
            short(one.task.location or str(one.task.workload)),
            str(one.task.weight),
            f"{_cost(one) / whole:.0%}",
            milliseconds(one.seconds),
            f"{one.speedup:.2f}x",
            f"{one.trials}/{one.candidates}",
            str(one.failed or ""),
            gflops(one.task.macs, one.seconds),
            style="" if one.speedup > 1 else "dim",
        )
    return table


def summary(result: TuningResult) -> str:
    """One line: what was reached, and why the session ended."""
    if not result.untuned_seconds:
        return f"nothing was timed: {result.reason or 'no tasks'}"
    failures = "".join(f", {count} x {status}" for status, count in sorted(result.failures.items()))
    return (
        f"kernels of the model: {milliseconds(result.untuned_seconds)} ms untuned, "
        f"{milliseconds(result.tuned_seconds)} ms tuned "
        f"({result.untuned_seconds / result.tuned_seconds:.2f}x) after {result.trials} trials in "
        f"{result.seconds:.1f} s; {result.reason}{failures}"
    )


def batch_quality(report: BatchReport) -> str:
    """What the ranker was worth in a batch; empty when that cannot be said."""
    parts = []
    if report.failed:
        parts.append(f"{report.failed} failed")
    if not math.isnan(report.correlation):
        parts.append(f"rank correlation {report.correlation:.2f}, regret {report.regret:.1%}")
    return "".join(f"; {part}" for part in parts)


def name_of(search: TaskSearch) -> str:
    """Where the task's first layer is in the model."""
    return short(search.task.location or str(search.task.workload))


def short(name: str) -> str:
    """The end of a long name, which tells more than its beginning."""
    return name if len(name) <= MOST_LOCATION else f"…{name[1 - MOST_LOCATION :]}"


def gain(search: TaskSearch) -> str:
    """How many times faster than the default the best is."""
    seconds = search.best_seconds
    return f"{search.default_seconds / seconds:.2f}x" if seconds > 0 else "-"


def milliseconds(seconds: float) -> str:
    """Milliseconds, three decimals."""
    return f"{seconds * 1e3:.3f}"


def gflops(macs: int, seconds: float) -> str:
    """10^9 floating-point operations a second, two for a multiply-add; a dash where there is no arithmetic."""
    return f"{2e-9 * macs / seconds:.0f}" if macs and seconds > 0 else "-"


def _headline(timed: Sequence[TaskSearch], scheduler: Scheduler | None) -> str:
    if scheduler is None:
        return ""
    before = sum(search.task.weight * search.default_seconds for search in timed)
    after = sum(map(_weighted, timed))
    latency = f"{milliseconds(after)} ms ({before / after:.2f}x)" if after else "no kernel timed yet"
    left = "" if math.isinf(scheduler.seconds_left) else f", {max(scheduler.seconds_left, 0):.0f} s left"
    trials = "" if math.isinf(scheduler.trials_left) else f" of {scheduler.trials + scheduler.trials_left:.0f}"
    return f"kernels: {latency}; {scheduler.trials}{trials} trials in {scheduler.elapsed:.0f} s{left}"


def _weighted(search: TaskSearch) -> float:
    return search.task.weight * search.best_seconds


def _cost(result: TaskResult) -> float:
    return result.task.weight * result.seconds if result.seconds > 0 else 0.0
