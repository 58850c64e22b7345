"""Measuring candidates: build a batch, then run it; nothing is built while something is timed."""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, wait
from contextlib import closing
from dataclasses import asdict
from typing import Self

from ..machines.catalog import usable_cores
from ..templates.option import Option
from .builder import WorkerPool
from .candidate import Built, Lowering, build_candidate, lower_with
from .outcome import Outcome, Status
from .process import HostError, OutOfMemoryError, WorkerDiedError, WorkerError, WorkerStartError, WorkerTimeoutError
from .runner import CandidateRunner, LocalRunner, RunSettings
from .sandbox import RunResult
from .task import Task
from .worker import cause_of, describe_error

BUILD_SHARE = 0.7  # of the time for a batch: what is not built by then is not measured
BUILD_TIMEOUT = 60.0  # seconds that building one candidate may take
MOST_KEPT = 512  # candidates whose code is kept, some tens of kilobytes each: the best are measured again


class Measurer(ABC):
    """Tells how fast options are. It may be used as a context manager, which closes it."""

    def measure(
        self,
        task: Task,
        options: Sequence[Option],
        incumbent: Option | None,
        *,
        seconds: float = math.inf,
        keep: Callable[[Outcome], object] = lambda outcome: None,
    ) -> list[Outcome]:
        """Measure ``options``, each beside ``incumbent``.

        Parameters
        ----------
        task, options, incumbent
            What to measure.
        seconds
            Time after which no candidate is begun any more.
        keep
            Called with each outcome as soon as there is one: what comes after may be interrupted.

        Returns
        -------
        One outcome for each option, in order; those that the time was too short for are left out.

        Raises
        ------
        WorkerError
            When worker processes cannot even start, or their machine fails in a way that is no candidate's fault: by a
            full disk, for example.
        """
        measured: dict[Option, Outcome] = {}
        with closing(self.outcomes(task, options, incumbent, seconds)) as outcomes:
            for outcome in outcomes:
                measured[outcome.option] = outcome
                keep(outcome)
        return [measured[option] for option in options if option in measured]

    @abstractmethod
    def outcomes(
        self, task: Task, options: Sequence[Option], incumbent: Option | None, seconds: float
    ) -> Generator[Outcome, None, None]:
        """Yield the outcomes of `measure` as they come, in any order."""

    @abstractmethod
    def start(self) -> None:
        """Get ready in the background; else the first measurement does."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the measurer holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class LocalMeasurer(Measurer):
    """Builds in a pool of workers, or in any executor, and runs on this machine, or through any runner.

    Parameters
    ----------
    executor
        Where to build: anything with the interface of ``concurrent.futures``, for example
        ``dask.distributed.Client(...).get_executor()``. It stays the caller's to shut down. By default a `WorkerPool`
        with one worker for each usable core.
    runner
        Where to run; by default a `LocalRunner`. The measurer closes it.
    lowering
        How a task's graph is lowered with an option.
    """

    def __init__(
        self,
        executor: Executor | None = None,
        runner: CandidateRunner | None = None,
        *,
        lowering: Lowering = lower_with,
    ) -> None:
        self._pool: WorkerPool | None = None
        if executor is None:
            executor = self._pool = WorkerPool(usable_cores(), timeout=BUILD_TIMEOUT)
        self._executor = executor
        self._runner = runner or LocalRunner(RunSettings(lowering=lowering))
        self._lowering = lowering
        self._built: dict[tuple[Task, Option], Built] = {}  # the least recently used first

    def start(self) -> None:
        """Start one process that builds and one that runs, which take seconds to import what they need."""
        self._runner.warm_up()
        if self._pool is not None:
            self._pool.start()

    def outcomes(
        self, task: Task, options: Sequence[Option], incumbent: Option | None, seconds: float
    ) -> Generator[Outcome, None, None]:
        """See `Measurer.outcomes`."""
        deadline = time.monotonic() + seconds
        self._runner.warm_up(task)
        wanted = dict.fromkeys([*([] if incumbent is None else [incumbent]), *options])
        built, failed = self._build(task, wanted, BUILD_SHARE * seconds)
        yield from (failed[option] for option in options if option in failed)
        if incumbent is not None and incumbent not in built and incumbent not in failed:
            return  # there was no time for it
        candidates = [built[option] for option in dict.fromkeys(options) if option in built]
        beside = None if incumbent is None else built.get(incumbent)
        if not candidates:
            return
        if self._pool is not None:
            self._pool.wait_ready()
        for candidate, result in self._runner.run(task, candidates, beside):
            yield _outcome(candidate, result)
            if time.monotonic() >= deadline:
                return

    def close(self) -> None:
        """End the processes that the measurer started, whatever they are at."""
        self._runner.close()
        if self._pool is not None:
            self._pool.abandon()
            self._pool.shutdown(cancel_futures=True)

    def _build(
        self, task: Task, options: Iterable[Option], seconds: float
    ) -> tuple[dict[Option, Built], dict[Option, Outcome]]:
        """Build what has not been built; returns what can be run, and what failed. The rest took too long."""
        built = {option: self._built.pop((task, option)) for option in options if (task, option) in self._built}
        futures = {
            option: self._executor.submit(build_candidate, self._lowering, task, option)
            for option in options
            if option not in built
        }
        patience = BUILD_TIMEOUT * max(1, len(futures))
        _, late = wait(futures.values(), min(patience, seconds))
        failed: dict[Option, Outcome] = {}
        for option, future in futures.items():
            if future in late:
                future.cancel()
                if patience <= seconds:
                    failed[option] = Outcome(option, "timeout", detail=f"not built within {patience:g} s")
            elif error := future.exception():
                if isinstance(error, WorkerStartError):
                    raise error
                if isinstance(error, HostError | BrokenExecutor) or cause_of(error) == "host":
                    raise HostError(f"candidates cannot be built: {_reason(error)}") from error
                failed[option] = Outcome(option, _build_status(error), detail=_reason(error))
            else:
                built[option] = future.result()
        if late and self._pool is not None:
            self._pool.abandon()  # a build would disturb what is timed next
        self._built.update({(task, option): one for option, one in built.items()})
        while len(self._built) > MOST_KEPT:
            del self._built[next(iter(self._built))]
        return built, failed


def _reason(error: BaseException) -> str:
    """One line; workers have made one of what happened in them."""
    return str(error) if isinstance(error, WorkerError) else describe_error(error)


def _build_status(error: BaseException) -> Status:
    if isinstance(error, WorkerTimeoutError):
        return "timeout"
    if isinstance(error, WorkerDiedError):
        return "out-of-memory" if error.signal == signal.SIGKILL else "crash"
    if type(error).__module__.startswith("distributed."):  # a worker of the cluster was lost with it
        return "crash"
    return "out-of-memory" if isinstance(error, OutOfMemoryError) else "build-error"


def _outcome(built: Built, result: RunResult) -> Outcome:
    return Outcome(built.option, **asdict(result), build_seconds=built.seconds)
