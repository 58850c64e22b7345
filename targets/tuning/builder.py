"""A pool of preloaded worker processes behind the interface of ``concurrent.futures``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

from .process import OutOfMemoryError, Worker, WorkerDiedError, WorkerError, WorkerStartError, WorkerTimeoutError
from .worker import Preparation

ReturnT = TypeVar("ReturnT")
BUILDER_MODULES = (f"{__package__}.candidate",)

_Job = tuple[Future[Any], Callable[..., object], tuple[object, ...]]


class WorkerPool(Executor):
    """An executor whose workers import PyTorch and TVM once and are replaced when they die.

    Workers start when there are more unfinished jobs than workers: the first answer comes soonest when nothing else is
    being imported beside the worker that gives it. A worker that dies in a job fails that job only. One that cannot
    even start fails every job with WorkerStartError, its last words as the reason.

    Parameters
    ----------
    workers
        Number of processes.
    modules
        What they import first.
    timeout
        Seconds that one job may take.
    """

    def __init__(
        self,
        workers: int,
        modules: tuple[str, ...] = BUILDER_MODULES,
        timeout: float | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, not {workers}")
        self._preparation = Preparation(modules)
        self._timeout = timeout
        self._count = workers
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._unfinished = 0
        self._threads: list[threading.Thread] = []
        self._imported: list[threading.Event] = []  # one for each thread
        self._lock = threading.Lock()
        self._busy: set[Worker] = set()
        self._broken: WorkerStartError | None = None
        self._closed = False

    def start(self, workers: int = 1) -> None:
        """Start some of the workers, which import what they need while the caller does something else."""
        with self._lock:
            if not self._closed:
                self._start(workers)

    def wait_ready(self) -> None:
        """Wait until no worker is importing any more, which would disturb a measurement."""
        for event in list(self._imported):
            event.wait()

    def submit(self, function: Callable[..., ReturnT], /, *arguments: object) -> Future[ReturnT]:  # type: ignore[override]
        """Call ``function(*arguments)`` in one of the workers; the function is found there by its name."""
        future: Future[ReturnT] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool has been shut down")
            self._unfinished += 1
            self._start(self._unfinished)
        future.add_done_callback(self._finished)
        self._jobs.put((future, function, arguments))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, after the jobs at hand unless they are cancelled."""
        with self._lock:
            self._closed = True
        if cancel_futures:
            self._cancel_waiting()
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def abandon(self) -> None:
        """Cancel the jobs that wait, and fail those at hand by ending their workers; the pool can still be used."""
        self._cancel_waiting()
        with self._lock:  # none of them may take its next job meanwhile
            for worker in self._busy:
                worker.kill()

    def _finished(self, future: Future[ReturnT]) -> None:
        with self._lock:
            self._unfinished -= 1

    def _start(self, workers: int) -> None:
        """Have at least so many workers, if the pool may."""
        for index in range(len(self._threads), min(workers, self._count)):
            name = f"build worker {index}"
            imported = threading.Event()
            thread = threading.Thread(target=self._work, args=(name, imported), name=name, daemon=True)
            self._imported.append(imported)
            self._threads.append(thread)
            thread.start()

    def _cancel_waiting(self) -> None:
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[0].cancel()

    def _work(self, name: str, imported: threading.Event) -> None:
        """One thread: takes jobs and hands them to its own process."""
        worker = self._begin(name)
        imported.set()
        while (job := self._jobs.get()) is not None:
            future, function, arguments = job
            if not future.set_running_or_notify_cancel():
                continue
            if worker is None and self._broken is None:
                worker = self._begin(name)
            if worker is None:
                future.set_exception(self._broken)
                continue
            with self._lock:
                self._busy.add(worker)
            try:
                value = worker.call(function, *arguments, timeout=self._timeout)
            except WorkerError as error:
                lives = self._set_idle(worker)
                future.set_exception(error)
                lives = lives and not isinstance(error, (WorkerDiedError, WorkerTimeoutError, OutOfMemoryError))
            else:
                lives = self._set_idle(worker)
                future.set_result(value)
            if not lives:
                worker.close()
                worker = None
        if worker is not None:
            worker.close()

    def _set_idle(self, worker: Worker) -> bool:
        """Returns whether it can take another job: `abandon` may have ended it when it had just answered."""
        with self._lock:
            self._busy.discard(worker)
            return worker.is_alive

    def _begin(self, name: str) -> Worker | None:
        try:
            worker = Worker(self._preparation, name)
            worker.wait_ready()
        except WorkerError as error:
            self._broken = WorkerStartError(str(error))
            return None
        return worker
