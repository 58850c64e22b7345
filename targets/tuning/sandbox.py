"""A process for code that may crash, hang or eat all memory, and a spare that takes its place when it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from .outcome import Status
from .process import HostError, OutOfMemoryError, Worker, WorkerDiedError, WorkerError, WorkerTimeoutError
from .worker import Preparation

_KILLED = 9  # the signal that Linux ends a process by when memory runs out

Setup = tuple[Callable[..., object], tuple[object, ...]]


@dataclass(frozen=True)
class RunResult:
    """What running one candidate gave; the fields are those of `tersor.targets.tuning.outcome.Outcome`."""

    status: Status
    seconds: float = math.nan
    spread: float = math.nan
    repeats: int = 0
    baseline: float = math.nan
    detail: str = ""


class Sandbox:
    """Runs candidates in one process, one after the other; their failures are results.

    Parameters
    ----------
    module
        What the process imports first.
    memory_bytes
        What the process may allocate; half of this machine's memory if omitted.
    setup_timeout
        Seconds that setting up may take.
    """

    def __init__(self, module: str, memory_bytes: int | None = None, setup_timeout: float = 120.0) -> None:
        self._preparation = Preparation((module,), memory_bytes or psutil.virtual_memory().total // 2)
        self._setup_timeout = setup_timeout
        self._worker: Worker | None = None
        self._setup: Setup | None = None  # what the process was set up by
        self._coming: Setup | None = None  # what it is being set up by, in the background
        self._spare: Worker | None = None

    def warm_up(self) -> None:
        """Start the process if it is missing, and a spare once it has run something; importing takes them seconds."""
        if self._worker is not None and self._worker.is_busy and self._coming is None:
            self._lose()  # a call was interrupted
        if self._worker is None:
            self._worker, self._spare = self._spare or self._start(), None
        if self._spare is None and self._setup is not None:
            self._spare = self._start()

    def prepare(self, setup: Setup) -> None:
        """Begin what `run` would do first: the process sets itself up while this one does something else."""
        self.warm_up()
        if self._worker is None or setup in (self._setup, self._coming) or self._coming is not None:
            return
        function, arguments = setup
        try:
            self._worker.begin(function, *arguments, timeout=self._setup_timeout)
        except WorkerDiedError:  # `run` will tell why, if the next one does not start either
            self._lose()
        else:
            self._coming = setup

    def wait_ready(self) -> None:
        """Wait until nothing is imported any more, which would disturb a measurement.

        Raises
        ------
        WorkerError
            When a process cannot even start; the message is its own.
        """
        self.warm_up()
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.wait_ready()

    def run(self, setup: Setup, function: Callable[..., RunResult], *arguments: object, timeout: float) -> RunResult:
        """Call ``function(*arguments)`` in the process, which has been set up by ``setup``.

        Parameters
        ----------
        setup
            A function and its arguments, called once in each process.
        timeout
            Seconds that the call may take.

        Raises
        ------
        WorkerError
            When no process can even start, or this machine fails in a way that is not the candidate's fault.
        """
        self._finish_other(setup)
        worker = self._ready_worker()
        try:
            self._set_up(worker, setup)
            result: RunResult = worker.call(function, *arguments, timeout=timeout)
        except HostError:
            raise
        except WorkerError as error:
            if isinstance(error, (WorkerDiedError, WorkerTimeoutError, OutOfMemoryError)):
                self._lose()
            return _failure(error)
        return result

    def close(self) -> None:
        """End both processes."""
        for worker in (self._worker, self._spare):
            if worker is not None:
                worker.close()
        self._worker = self._spare = self._setup = self._coming = None

    def _finish_other(self, setup: Setup) -> None:
        """Wait for what was begun for something else than ``setup``; its failure tells nothing about this candidate."""
        if self._worker is None or self._coming is None or self._coming == setup:
            return
        coming, self._coming = self._coming, None
        try:
            self._worker.finish(coming[0], self._setup_timeout)
            self._setup = coming
        except WorkerError:
            self._lose()

    def _set_up(self, worker: Worker, setup: Setup) -> None:
        """Get the process ready for ``setup``, which may have begun."""
        function, arguments = setup
        if self._coming is not None:
            self._coming = None
            worker.finish(function, self._setup_timeout)
        elif self._setup != setup:
            worker.call(function, *arguments, timeout=self._setup_timeout)
        self._setup = setup

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            self._worker, self._spare = self._spare or self._start(), None
        self._worker.wait_ready()
        return self._worker

    def _lose(self) -> None:
        assert self._worker is not None
        self._worker.close()
        self._worker = self._setup = self._coming = None

    def _start(self) -> Worker:
        return Worker(self._preparation, name="run worker")


def _failure(error: WorkerError) -> RunResult:
    """What the failure of a candidate is recorded as."""
    if isinstance(error, WorkerTimeoutError):
        return RunResult("timeout", detail=str(error))
    if isinstance(error, OutOfMemoryError) or (isinstance(error, WorkerDiedError) and error.signal == _KILLED):
        return RunResult("out-of-memory", detail=str(error))
    return RunResult("crash", detail=str(error))
