"""Measuring elsewhere: a tracker and servers on the loopback interface, builds on a dask cluster, what goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from tvm import rpc
from tvm.rpc import base

from tersor.cli.main import main
from tersor.ir import TersorError
from tersor.targets.codegen.options import Options
from tersor.targets.tuning.measure import LocalMeasurer
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.remote import RpcRunner
from tersor.targets.tuning.runner import RunSettings
from tersor.targets.tuning.timing import TimingPolicy
from tersor.targets.tuning.tracker import Address, count_servers
from tersor.tests.tuning.misbehaving import default_of, lower_misbehaving, misbehave, relu_task

KEY = "board"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def command(*arguments: str, preamble: str = "") -> Iterator[subprocess.Popen[str]]:
    """A tersor command in a process group of its own, ready when it says where it listens."""
    program = f"{preamble}\nfrom tersor.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert "127.0.0.1" in process.stdout.readline()
        yield process
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[str]) -> None:
    """What pulling the plug does."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def end_when_at_work(process: subprocess.Popen[str]) -> None:
    """End a server once the process of a session has started its runner."""
    server = psutil.Process(process.pid)
    while len(server.children(recursive=True)) < 2:
        time.sleep(0.01)
    end_group(process)


@contextmanager
def started_tracker() -> Iterator[Address]:
    port = free_port()
    with command("rpc-tracker", "--port", str(port)):
        yield Address("127.0.0.1", port)


@pytest.fixture(scope="module")
def tracker() -> Iterator[Address]:
    """One for all tests, each of which has servers with a key of its own."""
    with started_tracker() as address:
        yield address


@pytest.fixture(scope="module")
def lone_server() -> Iterator[tuple[psutil.Process, int]]:
    """A server without a tracker, and its port; it does not wait long for clients to introduce themselves."""
    port = free_port()
    quick = "from tersor.targets.tuning import server\nserver.INTRODUCTION_SECONDS = 0.2"
    with command("rpc-server", "--key", KEY, "--port", str(port), preamble=quick) as process:
        yield psutil.Process(process.pid), port


@contextmanager
def server(tracker: Address, preamble: str = "", key: str = KEY) -> Iterator[subprocess.Popen[str]]:
    options = ("--key", key, "--tracker", str(tracker), "--port", str(free_port()))
    with command("rpc-server", *options, preamble=preamble) as process:
        yield process


def descendants() -> set[psutil.Process]:
    """Processes that this one started, but for the resource tracker of multiprocessing, which dask's cluster starts."""
    family = psutil.Process().children(recursive=True)
    return {one for one in family if one.is_running() and "resource_tracker" not in " ".join(one.cmdline())}


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = descendants()
    yield
    psutil.wait_procs(descendants() - before, timeout=10)
    assert descendants() <= before


def runner(tracker: Address, key: str = KEY) -> RpcRunner:
    settings = RunSettings(TimingPolicy(max_seconds=0.05), timeout=3.0, lowering=lower_misbehaving)
    return RpcRunner(tracker, key, settings, server_timeout=30.0)


def test_a_server_measures_and_survives_a_crash(tracker: Address) -> None:
    task = relu_task()
    good = default_of(task)
    with server(tracker), ThreadPoolExecutor(1) as executor:
        with LocalMeasurer(executor, runner(tracker), lowering=lower_misbehaving) as remote:
            crashed, right = remote.measure(task, [misbehave("crash"), good], good)
        assert crashed.status == "crash" and "SIGABRT" in crashed.detail
        assert right.ok and right.baseline == right.seconds


BROKEN = """
from tersor.targets.tuning import server
def fail(*arguments):
    raise OSError("no room for a kernel")
server._run = fail
"""


def test_a_server_that_can_run_nothing_is_named_and_nothing_recorded(tracker: Address) -> None:
    task = relu_task()
    kept: list[Outcome] = []
    with (
        server(tracker, BROKEN, "broken"),
        ThreadPoolExecutor(1) as executor,
        LocalMeasurer(executor, runner(tracker, "broken"), lowering=lower_misbehaving) as remote,
        pytest.raises(TersorError, match=r"server with key 'broken' cannot run anything .*no room for a kernel"),
    ):
        remote.measure(task, [default_of(task)], None, keep=kept.append)
    assert not kept


@pytest.mark.slow
def test_a_lost_server_loses_nothing() -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    task = relu_task(1 << 16)
    options = list(Options(task.workload, task.target))
    wrong = [misbehave(f"wrong {index}") for index in range(6)]
    batch = [*wrong[:3], *options, *wrong[3:]]
    with (
        started_tracker() as tracker,
        server(tracker) as doomed,
        server(tracker),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
        LocalMeasurer(client.get_executor(), runner(tracker), lowering=lower_misbehaving) as measurer,
    ):
        assert count_servers(tracker) == {KEY: 2}
        first = measurer.measure(task, options[:1], None)  # both the cluster and a server are at work
        killer = threading.Thread(target=end_when_at_work, args=(doomed,))
        killer.start()
        outcomes = measurer.measure(task, batch, options[0])
        killer.join()
    assert first[0].ok
    assert [one.option for one in outcomes] == batch
    assert {one.status for one in outcomes if one.option in options} == {"ok"}
    assert {one.status for one in outcomes if one.option in wrong} == {"wrong"}
    assert doomed.poll() is not None


def test_a_tracker_that_is_not_there() -> None:
    address = Address("127.0.0.1", free_port())
    with pytest.raises(TersorError, match=rf"no RPC tracker answered at {address}.*tersor rpc-tracker"):
        RpcRunner(address, KEY)


def test_a_tracker_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(*silent.getsockname())
        start = time.monotonic()
        with pytest.raises(TersorError, match=r"within 0\.3 s"):
            count_servers(address, timeout=0.3)
        assert time.monotonic() - start < 5


def test_something_else_answers() -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            connection.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        with pytest.raises(TersorError, match="no RPC tracker"):
            count_servers(Address(*listener.getsockname()))
        thread.join()


@pytest.mark.parametrize("answer", [b"{", b"\xff\xff", b"[0, null]", b'[0, {"server_info": [1]}]', b"7"])
def test_a_tracker_that_answers_nonsense(answer: bytes) -> None:
    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(base.recvall(connection, 4))
            base.recvjson(connection)
            connection.sendall(struct.pack("<i", len(answer)) + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(TersorError, match=r"what answers at .* is no RPC tracker"):
            count_servers(Address(*listener.getsockname()))
        thread.join()


def introduction(key: bytes, magic: int = base.RPC_MAGIC, size: int | None = None) -> bytes:
    """What a client says first."""
    return struct.pack("<ii", magic, len(key) if size is None else size) + key


STRANGE = (
    b"",
    b"\0",
    b"GET / HTTP/1.1\r\n\r\n",
    introduction(b""),
    introduction(b"   "),
    introduction(b"\xff\xfe"),
    introduction(b"client:board", size=-1),
    introduction(b"client:board", size=2**31 - 1),
    introduction(b"client:board -timeout=soon"),
    introduction(b"client:board -timeout=nan"),
    introduction(b"client:other"),
)


def test_strange_and_silent_connections_do_not_block_a_server(lone_server: tuple[psutil.Process, int]) -> None:
    process, port = lone_server
    with ExitStack() as opened:
        for said in STRANGE:
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            connection.sendall(said)  # and no more
        session = rpc.connect("127.0.0.1", port, KEY, session_timeout=30)
        assert session.get_function("tersor.tuning.run") is not None
        del session
        assert process.status() != psutil.STATUS_ZOMBIE


def test_a_server_survives_sessions_that_are_lost(lone_server: tuple[psutil.Process, int]) -> None:
    process, port = lone_server
    for _ in range(2):
        session = rpc.connect("127.0.0.1", port, KEY, session_timeout=30)
        session.get_function("tersor.tuning.run")
        for child in process.children(recursive=True):
            child.kill()
        del session
    assert rpc.connect("127.0.0.1", port, KEY, session_timeout=30).get_function("tersor.tuning.run") is not None


def test_no_server_with_the_key(tracker: Address) -> None:
    with ThreadPoolExecutor(1) as executor:
        task = relu_task()
        remote = RpcRunner(tracker, "other", server_timeout=0.1)
        with LocalMeasurer(executor, remote) as measurer, pytest.raises(TersorError, match="rpc-server --key other"):
            measurer.measure(task, [default_of(task)], None)


@pytest.mark.parametrize("text", ["host:", "host:abc", ":9190", "host:99999"])
def test_addresses_are_checked(text: str) -> None:
    with pytest.raises(TersorError, match="host:port"):
        Address.parse(text)
    assert str(Address.parse("host:1234")) == "host:1234"
    assert Address.parse("host") == Address("host", 9190)


def test_a_server_without_its_tracker_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rpc-server", "--key", KEY, "--tracker", f"127.0.0.1:{free_port()}"])
    assert stop.value.code == 2
    assert "no RPC tracker answered" in capsys.readouterr().err


def test_a_server_needs_a_key_of_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rpc-server", "--key", "two words"])
    assert "one word" in capsys.readouterr().err


def test_executors_are_the_callers_to_shut_down() -> None:
    class Recording(ThreadPoolExecutor):
        closed = False

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.closed = True
            super().shutdown(wait, cancel_futures=cancel_futures)

    executor: Executor = Recording(1)
    LocalMeasurer(executor).close()
    assert not executor.closed  # type: ignore[attr-defined]
    executor.shutdown()
