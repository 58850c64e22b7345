"""Runs candidates on other machines, through TVM's RPC tracker.

Each machine runs ``tersor rpc-server``, which offers a `LocalRunner` there; the tracker hands machines of one key to
whoever asks. This side keeps one process for each machine that it was given: a connection that breaks or stalls ends
that process only, and the candidate goes to another machine.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

import tvm_ffi
from tvm import rpc

from ...ir import TersorError
from .candidate import Built
from .process import Worker, WorkerError
from .runner import RunSettings
from .sandbox import RunResult
from .server import RUN_FUNCTION
from .task import Task
from .tracker import Address, count_servers
from .worker import Preparation

_ATTEMPTS = 3  # servers that one candidate may be lost with before it counts as the cause
_OVERHEAD = 60.0  # seconds on top of a candidate's own time limits: the server starts a process, the code travels
_POLL = 0.5

_Job = tuple[Built, int]  # candidate, attempts so far
_Results = SimpleQueue[tuple[Built, RunResult] | None]  # None: a server has no more to do


class RpcRunner:
    """Runs candidates on the servers that a tracker knows by a key, on all of them at once.

    Parameters
    ----------
    tracker
        Where the tracker listens.
    key
        What kind of machine to ask for.
    settings
        How candidates are run there.
    server_timeout
        Seconds to wait for a free server.

    Raises
    ------
    TersorError
        When the tracker does not answer.
    """

    def __init__(
        self, tracker: Address, key: str, settings: RunSettings | None = None, server_timeout: float = 60.0
    ) -> None:
        count_servers(tracker)
        self._tracker = tracker
        self._key = key
        self._settings = settings or RunSettings()
        self._server_timeout = server_timeout
        self._idle: list[Worker] = []  # connected to a server each

    def warm_up(self, task: Task | None = None) -> None:
        """Nothing: connections are made when servers are needed."""

    def run(
        self, task: Task, candidates: Sequence[Built], incumbent: Built | None
    ) -> Iterator[tuple[Built, RunResult]]:
        """See `CandidateRunner.run`.

        Raises
        ------
        TersorError
            When the tracker does not answer, or no server is free in time.
        """
        jobs: SimpleQueue[_Job] = SimpleQueue()
        for candidate in candidates:
            jobs.put((candidate, 0))
        left = len(candidates)
        while left:
            lanes = min(self._wait_for_servers(), jobs.qsize())
            results: _Results = SimpleQueue()
            with ThreadPoolExecutor(lanes) as threads:
                drains = [threads.submit(self._drain, task, incumbent, jobs, results) for _ in range(lanes)]
                try:
                    for result in _until_ended(results, lanes):
                        left -= 1
                        yield result
                except (GeneratorExit, KeyboardInterrupt):  # the servers finish what they are at
                    while _next(jobs) is not None:
                        continue
                    raise
            refusals = [drain.result() for drain in drains]
            if all(refusals):
                reasons = "; ".join(dict.fromkeys(refusals))
                raise TersorError(f"{left} candidates of {task.location or task.workload} could not be run: {reasons}")

    def close(self) -> None:
        """End the connections; the servers become free."""
        for worker in self._idle:
            worker.close()
        self._idle.clear()

    def _wait_for_servers(self) -> int:
        """How many servers have the key, waiting for the first."""
        start = time.monotonic()
        while not (servers := count_servers(self._tracker)[self._key]):
            if time.monotonic() - start > self._server_timeout:
                known = ", ".join(sorted(count_servers(self._tracker))) or "no server at all"
                raise TersorError(
                    f"the RPC tracker at {self._tracker} has no server with key {self._key!r} (it has: {known}); "
                    f"start one by: tersor rpc-server --key {self._key} --tracker {self._tracker}"
                )
            time.sleep(_POLL)
        return servers

    def _drain(self, task: Task, incumbent: Built | None, jobs: SimpleQueue[_Job], results: _Results) -> str:
        """Run jobs on one server until there are no more or the server is lost; returns why none was to be had."""
        try:
            return self._run_jobs(task, incumbent, jobs, results)
        finally:
            results.put(None)

    def _run_jobs(self, task: Task, incumbent: Built | None, jobs: SimpleQueue[_Job], results: _Results) -> str:
        worker, refusal = self._connected()
        if worker is None:
            return refusal
        limit = self._settings.timeout + self._settings.task_timeout + _OVERHEAD
        while (job := _next(jobs)) is not None:
            candidate, attempts = job
            try:
                result = worker.call(run_remotely, self._settings, task, candidate, incumbent, timeout=limit)
            except WorkerError as lost:
                worker.close()
                if attempts + 1 < _ATTEMPTS:
                    jobs.put((candidate, attempts + 1))
                else:
                    detail = f"{_ATTEMPTS} servers were lost with it; last: {lost}"
                    results.put((candidate, RunResult("crash", detail=detail)))
                return ""
            if isinstance(result, str):
                worker.close()
                jobs.put(job)
                return f"a server with key {self._key!r} cannot run anything ({result})"
            results.put((candidate, result))
        self._idle.append(worker)
        return ""

    def _connected(self) -> tuple[Worker | None, str]:
        """A process with a server of its own, or why there is none."""
        if self._idle:
            return self._idle.pop(), ""
        worker = Worker(Preparation((__name__,)), name=f"connection to {self._tracker}")
        try:
            worker.call(connect, self._tracker, self._key, timeout=self._server_timeout)
        except WorkerError as error:
            worker.close()
            return None, f"no server with key {self._key!r} became free ({error})"
        return worker, ""


def _until_ended(results: _Results, lanes: int) -> Iterator[tuple[Built, RunResult]]:
    """Results as they come, until ``lanes`` servers have no more to do."""
    while lanes:
        result = results.get()
        if result is None:
            lanes -= 1
        else:
            yield result


def _next(jobs: SimpleQueue[_Job]) -> _Job | None:
    try:
        return jobs.get_nowait()
    except Empty:
        return None


_run: tvm_ffi.Function | None = None  # the function of the server that this process is connected to


def connect(tracker: Address, key: str) -> None:
    """Get a server from the tracker, for as long as this process lives."""
    global _run
    session = rpc.connect_tracker(tracker.host, tracker.port).request(key)
    _run = session.get_function(RUN_FUNCTION)


def run_remotely(settings: RunSettings, task: Task, candidate: Built, incumbent: Built | None) -> RunResult | str:
    """Run one candidate on the server that this process is connected to; a text says why that machine cannot."""
    assert _run is not None, "connect first"
    reply: RunResult | str = pickle.loads(bytes(_run(bytearray(pickle.dumps((settings, task, candidate, incumbent))))))
    return reply
