"""What ``tersor rpc-server`` does: TVM's RPC server with one function more, which runs candidates on this machine.

**Whoever can connect can run any code here**: that is what TVM's RPC is for. Servers listen on the loopback interface
unless told otherwise.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import tvm_ffi
from tvm.rpc import base
from tvm.rpc import server as tvm_server

from ...ir import TersorError
from .candidate import Built
from .runner import LocalRunner, RunSettings
from .sandbox import RunResult
from .task import Task
from .tracker import PORTS, Address, count_servers
from .worker import describe_error

RUN_FUNCTION = "tersor.tuning.run"
INTRODUCTION_SECONDS = 5.0  # for a connection to say who it is
_LONGEST_INTRODUCTION = 4096  # bytes
_PEEK_PAUSE = 0.01
_POLL = 0.5

_runner: tuple[RunSettings, LocalRunner] | None = None  # of this session's process


def serve(host: str, port: int, key: str, tracker: Address | None) -> None:
    """Run a server in this process until it is ended; tries the ports from ``port`` on.

    Parameters
    ----------
    key
        What kind of machine this is, for clients to ask for.
    tracker
        Where to report; without one, clients connect by address.

    Raises
    ------
    TersorError
        When the tracker does not answer, or no port is free.
    """
    if not key or any(letter.isspace() or letter == ":" for letter in key):
        raise TersorError(f"a key is one word without colons, for example rpi4, not {key!r}")
    if tracker is not None:
        count_servers(tracker)
    tvm_ffi.register_global_func(RUN_FUNCTION, run_here, override=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a process of a session inherits it, and must end too
    tvm_server.logger.setLevel(logging.ERROR)
    listener = Listener.bound(host, port)
    port = listener.getsockname()[1]
    print(f"RPC server for {key!r} at {host}:{port}", flush=True)
    reported = None if tracker is None else (tracker.host, tracker.port)
    home = Path.cwd()
    while True:
        try:
            tvm_server._listen_loop(listener, port, key, reported, None, None)
        except (
            OSError,
            RuntimeError,
            AssertionError,
            ValueError,
        ) as error:
            # The process of a session was lost, or the tracker was.
            print(f"RPC server: {describe_error(error)}", file=sys.stderr, flush=True)
        os.chdir(home)  # a lost session leaves its own folder behind


class Listener(socket.socket):
    """A listening socket whose connections have introduced themselves as TVM's clients do.

    TVM reads the introduction without a limit of time, and does not expect one without words: a silent connection would
    block the server for everybody, an empty one end it.
    """

    @classmethod
    def bound(cls, host: str, first_port: int) -> Listener:
        """Listen at the first free port from ``first_port`` on; raises TersorError when there is none."""
        reason: Exception | None = None
        for port in range(first_port, first_port + PORTS):
            try:
                listener = cls(base.get_addr_family((host, port)), socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, port))
            except OSError as error:
                reason = error
                continue
            listener.listen()
            return listener
        raise TersorError(f"cannot listen at {host}, ports {first_port} to {first_port + PORTS - 1}: {reason}")

    def accept(self) -> tuple[socket.socket | _Refused, tuple[str, int]]:
        """The next connection, nothing of it read; one that introduces itself wrongly is closed, and reads as zeros."""
        connection, address = super().accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # ends sessions of clients that are gone
        if _is_client(connection, time.monotonic() + INTRODUCTION_SECONDS):
            return connection, address
        connection.close()
        return _Refused(), address


class _Refused:
    """What TVM takes for a connection of another protocol, and drops."""

    def recv(self, count: int) -> bytes:
        return bytes(count)

    def close(self) -> None:
        pass


def _is_client(connection: socket.socket, deadline: float) -> bool:
    """Whether a connection begins, before the deadline, with TVM's number and a key of one word and known options."""
    try:
        magic, size = struct.unpack("<ii", _peek(connection, 8, deadline))
        if magic != base.RPC_MAGIC or not 0 < size <= _LONGEST_INTRODUCTION:
            return False
        words = _peek(connection, 8 + size, deadline)[8:].decode().split()
        timeouts = [float(word.removeprefix("-timeout=")) for word in words[1:] if word.startswith("-timeout=")]
        return bool(words) and all(0 < timeout < threading.TIMEOUT_MAX for timeout in timeouts)
    except (OSError, ValueError):  # closed, late, or no text
        return False


def _peek(connection: socket.socket, count: int, deadline: float) -> bytes:
    """The first bytes that a connection sends, which stay to be read; raises OSError when they are late."""
    while True:
        if not select.select([connection], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        data = connection.recv(count, socket.MSG_PEEK)
        if len(data) == count:
            return data
        if not data or time.monotonic() > deadline:
            raise ConnectionError
        time.sleep(_PEEK_PAUSE)


def run_here(request: bytes) -> bytearray:
    """Run one candidate in this session's runner; called by the client through TVM's RPC.

    Answers with the pickled result, or with a text that says why nothing can be run on this machine.
    """
    try:
        return bytearray(pickle.dumps(_run(*pickle.loads(bytes(request)))))
    except Exception as error:  # the error boundary between machines: an exception here looks like a lost server there
        return bytearray(pickle.dumps(describe_error(error)))


def _run(settings: RunSettings, task: Task, candidate: Built, incumbent: Built | None) -> RunResult:
    global _runner
    if _runner is None:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if _runner is None or _runner[0] != settings:
        if _runner is not None:
            _runner[1].close()
        _runner = (settings, LocalRunner(settings))
    ((_, result),) = _runner[1].run(task, [candidate], incumbent)
    return result


def _end_with_parent(parent: int) -> None:
    """End this session's process when its server is gone; it would serve its client for ever."""
    while os.getppid() == parent:
        time.sleep(_POLL)
    os._exit(1)
