"""Measuring: whatever a candidate does is an outcome, the next one is measured right, and no process stays behind."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tersor.targets.codegen.options import Options
from tersor.targets.tuning.builder import WorkerPool
from tersor.targets.tuning.candidate import Built
from tersor.targets.tuning.measure import LocalMeasurer
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.process import (
    CallFailedError,
    HostError,
    Worker,
    WorkerDiedError,
    WorkerStartError,
    WorkerTimeoutError,
)
from tersor.targets.tuning.runner import LocalRunner, RunSettings
from tersor.targets.tuning.sandbox import RunResult, Sandbox
from tersor.targets.tuning.task import Task
from tersor.targets.tuning.timing import TimingPolicy
from tersor.targets.tuning.worker import Preparation
from tersor.tests.tuning.jobs import double, fail, open_file
from tersor.tests.tuning.misbehaving import default_of, lower_misbehaving, misbehave, relu_task

QUICK = TimingPolicy(max_seconds=0.05)
GIB = 2**30


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Every test gives back the processes that it started."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    """Builds in this process, which has everything imported."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def measurer(executor: ThreadPoolExecutor) -> LocalMeasurer:
    runner = LocalRunner(RunSettings(QUICK, timeout=2.0, memory_bytes=2 * GIB, lowering=lower_misbehaving))
    return LocalMeasurer(executor, runner, lowering=lower_misbehaving)


def test_failures_are_outcomes_and_the_next_candidate_is_fine(executor: ThreadPoolExecutor) -> None:
    task = relu_task()
    good = default_of(task)
    bad = ["unbuildable", "crash", "out of memory", "hang", "wrong", "writes nothing"]
    with measurer(executor) as local:
        outcomes = local.measure(task, [*map(misbehave, bad), good], None)
        more = [good, misbehave("writes nothing, after the right numbers"), Options(task.workload, task.target)[1]]
        again, silent, other = local.measure(task, more, good)
    *failed, last = outcomes
    wanted = ["build-error", "crash", "out-of-memory", "timeout", "wrong", "wrong"]
    assert [one.status for one in failed] == wanted
    assert [one.option for one in outcomes] == [*map(misbehave, bad), good]
    assert all(math.isnan(one.seconds) and one.detail and "\n" not in one.detail for one in failed)
    assert "this tile does not exist" in failed[0].detail
    assert "SIGABRT" in failed[1].detail
    assert "2 s" in failed[3].detail
    assert "differs by" in failed[4].detail
    assert last.status == "ok" and last.seconds > 0 and last.repeats > 0 and math.isnan(last.baseline)
    assert again.ok and again.baseline == again.seconds
    assert silent.status == "wrong"
    assert other.ok and other.baseline > 0 and other.baseline != other.seconds


class Believing:
    """A runner that takes every candidate's word."""

    def warm_up(self, task: Task | None = None) -> None:
        pass

    def run(
        self, task: Task, candidates: Sequence[Built], incumbent: Built | None
    ) -> Iterator[tuple[Built, RunResult]]:
        return ((candidate, RunResult("ok", 1.0, 0.0, 1)) for candidate in candidates)

    def close(self) -> None:
        pass


def test_a_pool_answers_and_shuts_down() -> None:
    with WorkerPool(2, ()) as pool:
        assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
        error = pool.submit(fail, "the reason").exception()
    assert isinstance(error, CallFailedError) and str(error) == "ValueError: the reason"
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(double, 1)


def test_a_pool_has_no_more_workers_than_jobs() -> None:
    with WorkerPool(2, ()) as pool:
        pool.start()
        pool.wait_ready()
        for number in range(3):
            assert pool.submit(double, number).result() == 2 * number
        assert len(psutil.Process().children()) == 1
        assert list(pool.map(double, range(3))) == [0, 2, 4]
        pool.wait_ready()
        assert len(psutil.Process().children()) == 2


def test_a_sandbox_is_set_up_in_the_background() -> None:
    sandbox = Sandbox("time")
    first, second = (double, (1,)), (double, (2,))
    try:
        sandbox.prepare(first)  # before the process is ready
        assert sandbox.run(second, double, 4, timeout=30) == 8  # another one is wanted in the end
        sandbox.prepare((fail, ("the reason",)))
        result = sandbox.run((fail, ("the reason",)), double, 4, timeout=30)
        assert result.status == "crash" and "the reason" in result.detail
        assert sandbox.run(first, double, 5, timeout=30) == 10
        sandbox.prepare((fail, ("of another task",)))
        assert sandbox.run(second, double, 6, timeout=30) == 12
    finally:
        sandbox.close()


def test_builders_that_die_fail_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pool for all of it: a worker imports for seconds."""
    task = relu_task()
    good = default_of(task)
    kept: list[Outcome] = []
    with WorkerPool(1, timeout=20) as pool, LocalMeasurer(pool, Believing(), lowering=lower_misbehaving) as local:
        died, built = local.measure(task, [misbehave("builder dies"), good], None)
        assert died.status == "crash" and "exit code 3" in died.detail  # that job only
        assert built.ok

        with pytest.raises(HostError, match=r"candidates cannot be built: OSError: .*No space left on device"):
            local.measure(task, [misbehave("disk is full"), good], None, keep=kept.append)
        assert not kept  # a machine that fails is no measurement

        monkeypatch.setattr(pool, "_timeout", 1.0)
        (hung,) = local.measure(task, [misbehave("builder hangs")], None)
        assert hung.status == "timeout"


def test_a_build_that_the_time_is_too_short_for_is_ended_and_not_recorded() -> None:
    task = relu_task()
    good = default_of(task)
    kept: list[Outcome] = []
    with LocalMeasurer(runner=Believing(), lowering=lower_misbehaving) as local:
        assert len(local.measure(task, [good], None, keep=kept.append)) == 1
        outcomes = local.measure(task, [misbehave("builder hangs"), good], None, seconds=1.0, keep=kept.append)
    assert [one.option for one in outcomes] == [good]
    assert [one.option for one in kept] == [good, good]


def test_builders_that_cannot_start_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerPool.__init__, "__defaults__", (("tersor.no_such_module",), None))
    task = relu_task()
    with LocalMeasurer(runner=Believing()) as local, pytest.raises(WorkerStartError, match="no_such_module"):
        local.measure(task, [default_of(task)], None)


def test_a_machine_that_fails_is_no_outcome() -> None:
    sandbox = Sandbox("time")
    try:
        with pytest.raises(HostError, match="No such file"):
            sandbox.run((double, (1,)), open_file, "no such file", timeout=30)
    finally:
        sandbox.close()


def test_processes_that_the_system_refuses_are_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with WorkerPool(1, ()) as pool:
        pool.start()
        pool.wait_ready()
        error = pool.submit(double, 1).exception(timeout=60)
    assert isinstance(error, WorkerStartError) and "Resource temporarily unavailable" in str(error)


def test_a_worker_that_is_ended_as_it_answers_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """Jobs are abandoned while one is just being answered: the next job must not go to the worker that was ended."""
    ended: list[Worker] = []
    finish = Worker.finish

    def answered(self: Worker, function: Any, timeout: float | None = None) -> Any:
        value = finish(self, function, timeout)
        if not ended:
            pool.abandon()
            ended.append(self)
        return value

    monkeypatch.setattr(Worker, "finish", answered)
    with WorkerPool(1, ()) as pool:
        assert pool.submit(double, 1).result() == 2
        assert not ended[0].is_alive
        assert pool.submit(double, 2).result() == 4


def test_workers_that_cannot_start_tell_why() -> None:
    with WorkerPool(2, ("tersor.no_such_module",)) as pool:
        errors = [pool.submit(double, number).exception(timeout=60) for number in range(3)]
    for error in errors:
        assert isinstance(error, WorkerDiedError)
        assert "No module named 'tersor.no_such_module'" in str(error)


def test_a_worker_reports_crash_and_time_out() -> None:
    worker = Worker(Preparation(), name="test worker")
    try:
        assert worker.call(double, 2) == 4
        with pytest.raises(WorkerTimeoutError, match=r"test worker took longer than 0\.5 s \(sleep\)"):
            worker.call(time.sleep, 30, timeout=0.5)
        assert not worker.is_alive
    finally:
        worker.close()


def test_a_sandbox_that_cannot_start_tells_why() -> None:
    sandbox = Sandbox("tersor.no_such_module")
    try:
        with pytest.raises(WorkerDiedError, match=r"No module named 'tersor\.no_such_module'"):
            sandbox.wait_ready()
    finally:
        sandbox.close()


def test_an_interrupted_call_is_not_taken_for_the_next_ones_answer() -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without one
    sandbox = Sandbox("time")
    try:
        sandbox.warm_up()
        threading.Timer(1.0, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            sandbox.run((double, (1,)), time.sleep, 3, timeout=30)  # type: ignore[arg-type]
        sandbox.wait_ready()
        assert sandbox.run((double, (1,)), double, 4, timeout=30) == 8
    finally:
        sandbox.close()
        signal.signal(signal.SIGINT, handler)


def test_workers_end_with_their_parent() -> None:
    program = (
        "import time; from tersor.targets.tuning.process import Worker; from tersor.targets.tuning.worker import "
        "Preparation; w = Worker(Preparation()); w.wait_ready(); print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([worker], timeout=20)
    assert gone and not alive
