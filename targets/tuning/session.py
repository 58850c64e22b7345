"""One tuning session: propose, measure, record, learn, and again, until the budget is spent or nothing is to gain.

Every candidate is timed beside the analytic default, so that a drifting machine slows both and their ratio stays. What
looks best is measured again before it is used: the fastest of many noisy timings is too good to be true.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ...ir import TersorError
from ..codegen.options import Options
from ..templates.option import Option, Workload
from .confirmation import Confirmation
from .examples import Examples
from .log import LogWriter
from .measure import Measurer
from .model import Ranker
from .observer import Observer
from .outcome import Outcome
from .records import Purpose, Record, best
from .result import BatchReport, Point, TaskResult, TuningResult
from .scheduler import Budget, Scheduler
from .search import SearchOptions, TaskSearch
from .task import Task

ROUNDS = 8  # of confirmation runs at most: a winner that loses its place makes room for one that was measured once
LEAST_RESERVE, MOST_RESERVE = 0.1, 0.5  # shares of the time budget that are kept for confirmation
REFIT_GROWTH = 0.1  # share of new examples after which the ranker learns again


class TuningSession:
    """Tunes the tasks of one model.

    Parameters
    ----------
    tasks
        From `extract_tasks`.
    measurer
        Builds and times candidates; not closed here.
    budget
        When to stop at the latest. Trials of earlier sessions that are in ``records`` count, but for those that ship.
    records
        Earlier measurements that fit the target: those of these tasks are not repeated, the others teach the ranker.
    log_dir
        Where to append what is measured; None to keep it in memory only.
    settings
        How each task is searched.
    observer
        Is told how it goes on.
    seed
        Of the random picks.
    clock
        Seconds, for tests.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        measurer: Measurer,
        budget: Budget,
        *,
        records: Iterable[Record] = (),
        log_dir: Path | None = None,
        settings: SearchOptions | None = None,
        observer: Observer | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or SearchOptions()
        self._measurer = measurer
        self._observer = observer or Observer()
        self._log = LogWriter(log_dir, self._observer.say)
        self._generator = np.random.default_rng(seed)
        self._records = list(records)
        self._searches = [TaskSearch(task, Options(task.workload, task.target), settings) for task in tasks]
        self._restore()
        self._scheduler = Scheduler(self._searches, budget, clock=clock)
        self._confirmation = Confirmation(self._searches, self._scheduler)
        self._seconds = budget.seconds
        self._scheduler.trials = self._earlier = self._trials_spent()
        self._examples = Examples(self._records)
        self._learned = 0
        self._ranker = Ranker(seed)
        self._batches: list[BatchReport] = []
        self._steps: list[tuple[float, int, int, float]] = []  # seconds, trials, search, ratio to the default

    def run(self) -> TuningResult:
        """Tune until the end; an interrupt from the keyboard ends the session early and loses nothing.

        Raises
        ------
        TersorError
            When nothing can be measured here, for example because workers do not start.
        """
        self._observer.started(self._searches, self._scheduler)
        for search in self._searches:
            if search.failing:
                self._tell_failing(search)
        reason = ""
        try:
            self._tune()
        except KeyboardInterrupt:
            reason = "interrupted"
        except TersorError:
            self._observer.finished(self._result("measuring failed"))
            raise
        result = self._result(reason)
        self._observer.finished(result)
        return result

    # Steps --------------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        of_workload: dict[Workload, list[Outcome]] = {}
        for record in self._records:
            of_workload.setdefault(record.workload, []).append(record.outcome)
        for search in self._searches:
            search.restore(_settled(of_workload.get(search.task.workload, ())))

    def _trials_spent(self) -> int:
        """Options of these tasks that were measured before; those that ship with Tersor cost the user nothing."""
        workloads = {search.task.workload for search in self._searches}
        own = (record for record in self._records if record.workload in workloads and not record.is_shipped)
        return len({(record.workload, record.option) for record in own})

    def _tune(self) -> None:
        """Search and confirm, and again for as long as that leaves time to try more: the second may be over sooner."""
        before = -1
        while self._scheduler.trials > before:
            before = self._scheduler.trials
            self._search()
            self._confirm()
        self._tell_unconfirmed()

    def _tell_failing(self, search: TaskSearch) -> None:
        self._observer.say(f"{search.task.location or search.task.workload}: not tuned: {search.failure}")

    def _search(self) -> None:
        self._learn()
        self._reserve()
        while (search := self._scheduler.next(self._ranker)) is not None:
            options = search.propose(self._ranker, self._generator, self._scheduler.batch_limit(search))
            before, started = search.trials, self._scheduler.elapsed
            outcomes = self._measure(search, options, "trial", self._scheduler.seconds_to_search)
            report = search.record(outcomes, self._ranker)
            spent = self._scheduler.elapsed - started
            self._scheduler.spent(search, spent, search.trials - before)
            if not outcomes:  # the time was too short
                continue
            self._batches.append(report)
            self._note(search)
            self._observer.batch(search, report)
            if search.failing:
                self._tell_failing(search)
            self._learn()
            self._reserve()

    def _reserve(self) -> None:
        """Keep as much of the time as the confirmation of all present winners is going to take."""
        if self._seconds is None:
            return
        least, most = LEAST_RESERVE * self._seconds, MOST_RESERVE * self._seconds
        self._scheduler.reserved = min(max(self._confirmation.seconds, least), most)

    def _confirm(self) -> None:
        """Measure the winners again, one sample each round."""
        for _ in range(ROUNDS):
            for search in self._confirmation.round():
                left, started = self._scheduler.seconds_left, self._scheduler.elapsed
                if left <= 0:
                    return
                search.restore(self._measure(search, self._confirmation.winners(search), "final", left))
                self._confirmation.spent(search, self._scheduler.elapsed - started)
                self._note(search)

    def _tell_unconfirmed(self) -> None:
        if self._seconds is None:
            return
        chosen = best(self._records)
        lost = [one for one in self._confirmation.waiting if one.task.workload not in chosen]
        if lost:
            self._observer.say(
                f"there was no time to confirm the best options of {len(lost)} tasks, which stay untuned; "
                "tune again with the same log folder to go on"
            )

    def _measure(
        self, search: TaskSearch, options: Sequence[Option], purpose: Purpose, seconds: float
    ) -> list[Outcome]:
        def keep(outcome: Outcome) -> None:
            record = Record.now(search.task, outcome, purpose)
            self._records.append(record)
            self._examples.add(record)
            self._log.add(record)

        return self._measurer.measure(search.task, options, search.default, seconds=seconds, keep=keep)

    def _learn(self) -> None:
        """Train the ranker again once there is enough that it has not seen."""
        known = len(self._examples)
        if known > self._learned * (1 + REFIT_GROWTH):
            self._ranker.fit(self._examples.all())
            self._learned = known

    def _note(self, search: TaskSearch) -> None:
        ratio = search.ratio(search.best)
        if not math.isnan(ratio):
            scheduler = self._scheduler
            self._steps.append((scheduler.elapsed, scheduler.trials, self._searches.index(search), ratio))

    # Results ------------------------------------------------------------------------------------------------------

    def _result(self, reason: str) -> TuningResult:
        """What was reached; ``reason`` is why it ended early, empty if it did not."""
        chosen = best(self._records)
        tasks = tuple(self._task_result(search, chosen.get(search.task.workload)) for search in self._searches)
        return TuningResult(
            tasks=tasks,
            records=tuple(self._records),
            history=self._history(),
            batches=tuple(self._batches),
            reason=reason or self._scheduler.reason,
            trials=self._scheduler.trials - self._earlier,
            seconds=self._scheduler.elapsed,
            interrupted=reason == "interrupted",
        )

    def _task_result(self, search: TaskSearch, chosen: Record | None) -> TaskResult:
        option = search.default if chosen is None else chosen.option
        default_seconds = search.default_seconds
        return TaskResult(
            task=search.task,
            option=option,
            default_seconds=default_seconds,
            seconds=default_seconds * search.ratio(option),
            trials=search.trials,
            failed=search.failed,
            candidates=len(search.options),
        )

    def _history(self) -> tuple[Point, ...]:
        """The model's latency after each batch; a task that had not been timed yet counts with its default."""
        weighted = [search.task.weight * search.default_seconds for search in self._searches]
        weighted = [0.0 if math.isnan(seconds) else seconds for seconds in weighted]
        ratios = [1.0] * len(weighted)
        points = [Point(0.0, self._earlier, sum(weighted))]
        for seconds, trials, index, ratio in self._steps:
            ratios[index] = ratio
            latency = sum(one * by for one, by in zip(weighted, ratios, strict=True))
            points.append(Point(seconds, trials, latency))
        return tuple(points)


def _settled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of earlier sessions without the options that failed once as they may not again: those are tried anew."""
    attempts = Counter(outcome.option for outcome in outcomes)
    return [one for one in outcomes if not (one.may_pass and attempts[one.option] == 1)]
