"""Compiled models in other processes and threads: forks, pickles, interrupts, and what the environment says."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tersor import TersorError
from tersor.ir import TensorType, ops
from tersor.targets import Executable
from tersor.targets.machines.features import required_features
from tersor.targets.runtime import virtual_machine
from tersor.targets.runtime.threads import set_threads, signals_deferred
from tersor.tests.random_graphs import GraphBuilder

from .compiled import compiled

PATIENCE = 600  # seconds, for what would take for ever; others may need the processor
INTERRUPTS = [pytest.param(30), pytest.param(400, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(512, 1024, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def executable() -> Executable:
    """A program whose kernels need all threads, unlike those of tiny models."""
    b = GraphBuilder({"x": TensorType((512, 1024))})
    return compiled(b.done(b.op(ops.SoftmaxOp, b.op(ops.ReluOp, b.graph.inputs[0]), axis=1)))


@pytest.fixture(scope="module")
def artifact(executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return executable.save(tmp_path_factory.mktemp("processes") / "model.tersor")


def in_fork(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a child that this thread forks."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))
    child.start()
    sender.close()  # the child's stays open, so that its death is the end of the pipe
    try:
        assert receiver.poll(PATIENCE), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


def in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread that has never called a model."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def script(text: str, artifact: Path, **environment: str) -> str:
    """What a new process prints that runs ``text`` with a model, an input and its output in exe, x and y."""
    head = f"import os, signal, sys, time, tersor, torch\nexe = tersor.load({str(artifact)!r})\n"
    head += "x = torch.ones(512, 1024)\ny = exe(x).clone()\n"
    variables = {name: value for name, value in os.environ.items() if name != "TVM_THREAD_POOL_SPIN_COUNT"}
    done = subprocess.run(
        [sys.executable, "-c", head + text],
        capture_output=True,
        text=True,
        timeout=600,
        env=variables | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


# Forks ------------------------------------------------------------------------------------------------------------


def test_a_fork_can_call(executable: Executable, example: torch.Tensor) -> None:
    expected = executable(example)

    def same() -> bool:
        return torch.equal(executable(example), expected)

    assert in_fork(same)
    assert in_thread(lambda: in_fork(same)), "forked from a thread that has made no call"
    assert in_fork(lambda: in_fork(same)), "a grandchild"
    assert in_fork(lambda: same() and in_fork(same)), "a grandchild of a child that called"
    assert in_fork(lambda: in_thread(same)), "a thread of the child"
    assert same()


def test_a_fork_has_workers_where_there_can_be_some(executable: Executable, example: torch.Tensor) -> None:
    executable(example)
    cores = os.cpu_count() or 1
    assert in_fork(lambda: set_threads(cores)) == 1
    assert in_fork(lambda: in_thread(lambda: set_threads(cores))) == cores
    assert in_thread(lambda: in_fork(lambda: set_threads(cores))) == cores
    assert in_fork(lambda: executable.benchmark(example, repeat=2, min_seconds=0.0, kernels=True)).threads == 1


def test_a_fork_waits_for_the_calls_of_other_threads(executable: Executable, example: torch.Tensor) -> None:
    expected = executable(example)
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            executable(example)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call) for _ in range(2)]
        try:
            for _ in range(10):
                assert in_fork(lambda: torch.equal(executable(example), expected))
        finally:
            stop.set()
        for one in calls:
            one.result()


class Rows(Dataset[torch.Tensor]):
    def __init__(self, executable: Executable, example: torch.Tensor) -> None:
        self.executable, self.example = executable, example

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        result: torch.Tensor = self.executable(self.example * index)
        return result


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(start: str, executable: Executable, example: torch.Tensor) -> None:
    rows = Rows(executable, example)
    expected = [rows[index] for index in range(len(rows))]
    loader = DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=PATIENCE)
    assert all(torch.equal(*pair) for pair in zip(loader, expected, strict=True))


@pytest.mark.slow
def test_a_child_that_ends_by_itself_ends(artifact: Path) -> None:
    ends = """
child = os.fork()
if child == 0:
    sys.exit(3 if torch.equal(exe(x), y) else 4)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, signal.SIGKILL)
print(os.waitstatus_to_exitcode(status) if done else "hangs")
"""
    assert script(ends, artifact) == "3"


# Signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupts", INTERRUPTS)
def test_interrupts_while_kernels_are_timed(interrupts: int, executable: Executable, example: torch.Tensor) -> None:
    expected = executable(example)

    def interrupt() -> None:
        time.sleep(random.random() * 0.01)
        os.kill(os.getpid(), signal.SIGINT)

    def interrupted() -> int:
        count = 0
        for _ in range(interrupts):
            other = threading.Thread(target=interrupt)
            try:
                other.start()
                while True:
                    executable.benchmark(example, repeat=1, min_seconds=0.0, kernels=True)
            except KeyboardInterrupt:
                count += 1
            other.join()
        assert torch.equal(executable(example), expected)
        timed = executable.benchmark(example, repeat=5, min_seconds=0.0, kernels=True)
        assert [one.kernel for one in timed.kernels] == list(executable.info.kernels)
        return count

    assert in_fork(interrupted) == interrupts  # a child, whose memory may be damaged


def test_signals_wait_and_none_is_lost() -> None:
    events: list[str] = []

    def note(number: int, frame: Any) -> None:
        events.append(signal.Signals(number).name)
        raise InterruptedError

    before = {number: signal.signal(number, note) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with pytest.raises(InterruptedError), signals_deferred():
            for number in before:
                signal.raise_signal(number)
            events.append("end of the block")
        assert events == ["end of the block", "SIGUSR1", "SIGUSR2"]
        for number in before:
            assert signal.getsignal(number) is note
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    def elsewhere() -> None:
        with signals_deferred():
            events.append("in a thread")

    in_thread(elsewhere)
    assert events[-1] == "in a thread"


def test_a_signal_handler_may_call_the_model(executable: Executable, example: torch.Tensor) -> None:
    expected = executable(example)
    with executable._lock:  # as when the signal arrives within a call
        assert torch.equal(executable(example), expected)


def test_timing_kernels_leaves_no_instrument_behind(executable: Executable, example: torch.Tensor) -> None:
    def functions_called() -> list[str]:
        names: list[str] = []

        def note(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and frame.f_code.co_filename == virtual_machine.__file__:
                names.append(frame.f_code.co_name)

        sys.setprofile(note)
        try:
            executable(example)
        finally:
            sys.setprofile(None)
        return names

    before = functions_called()
    executable.benchmark(example, repeat=1, min_seconds=0.0, kernels=True)
    executable.kernel_seconds(example)
    assert functions_called() == before


# Pickles and copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda exe: pickle.loads(pickle.dumps(exe))])
def test_copies_compute_the_same(
    clone: Callable[[Executable], Executable], executable: Executable, example: torch.Tensor
) -> None:
    expected, threads = executable(example), executable.threads
    executable.threads = 1
    twin = clone(executable)
    executable.threads = threads
    assert twin.threads == 1
    assert torch.equal(twin(example), expected)
    assert twin.info == executable.info
    assert str(twin.graph) == str(executable.graph)
    assert torch.equal(clone(twin)(example), expected)


def test_a_pickle_of_code_for_another_processor(
    executable: Executable, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_no_fma = frozenset(required_features(executable.info.target)) - {"fma"}
    monkeypatch.setattr("tersor.targets.machines.features.host_features", lambda: has_no_fma)
    foreign = pickle.loads(pickle.dumps(executable))
    assert foreign.model.code.code == executable.model.code.code
    with pytest.raises(TersorError, match="this processor lacks fma"):
        foreign(example)
    monkeypatch.undo()
    assert torch.equal(pickle.loads(pickle.dumps(foreign))(example), executable(example)), "back where it can run"


def test_a_pickle_from_a_machine_with_more_processors(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("os.cpu_count", lambda: 10_000)
        twin = copy.copy(executable)
        twin.threads = 9_999
        pickled = pickle.dumps(twin)
    assert pickle.loads(pickled).threads == os.cpu_count()


# Threads ----------------------------------------------------------------------------------------------------------


def test_short_lived_threads_take_their_workers_along(executable: Executable, example: torch.Tensor) -> None:
    expected = executable(example)
    before = psutil.Process().num_threads()
    assert all(in_thread(lambda: torch.equal(executable(example), expected)) for _ in range(300))
    assert psutil.Process().num_threads() <= before + 2


def test_the_thread_count_may_change_during_calls(executable: Executable, example: torch.Tensor) -> None:
    expected, threads = executable(example), executable.threads

    def call() -> bool:
        return all(torch.equal(executable(example), expected) for _ in range(200))

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call) for _ in range(3)]
        while not all(one.done() for one in calls):
            executable.threads = 1
            executable.threads = threads
    assert all(one.result() for one in calls)


@pytest.mark.parametrize("value", ["100000", "0", "-3", "x"])
def test_absurd_numbers_of_threads_in_the_environment(
    value: str, executable: Executable, example: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = executable(example)
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "TVM_BIND_THREADS"):
        monkeypatch.setenv(name, value)

    def as_before() -> bool:  # in a thread, so that there is no pool yet
        return set_threads(executable.threads) == executable.threads and torch.equal(executable(example), expected)

    assert in_fork(lambda: in_thread(as_before))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["100000", "x"])
def test_absurd_numbers_of_threads_in_a_new_process(value: str, artifact: Path) -> None:
    names = dict.fromkeys(("TVM_NUM_THREADS", "OMP_NUM_THREADS", "TVM_BIND_THREADS"), value)
    assert script("print(torch.equal(exe(x), y))", artifact, **names) == "True"
