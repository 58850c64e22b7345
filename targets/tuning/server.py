"""What ``tersor rpc-server`` does: TVM's RPC server with one function more, which runs candidates on this machine.

**Whoever can connect can run any code here**: that is what TVM's RPC is for. Servers listen on the loopback interface
unless told otherwise.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time

import tvm_ffi
from tvm.rpc.server import PopenRPCServerState

from ...ir import TersorError
from .candidate import Built
from .runner import LocalRunner, RunSettings
from .sandbox import RunResult
from .task import Task
from .tracker import PORTS, Address, count_servers
from .worker import describe_error

RUN_FUNCTION = "tersor.tuning.run"
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
        signal.signal(number, signal.SIG_DFL)  # the listening thread would not notice an exception
    reported = None if tracker is None else (tracker.host, tracker.port)
    while True:
        try:
            state = PopenRPCServerState(host, port, port + PORTS, tracker_addr=reported, key=key, silent=True)
        except (OSError, ValueError) as error:
            raise TersorError(f"cannot listen at {host}, ports {port} to {port + PORTS - 1}: {error}") from error
        print(f"RPC server for {key!r} at {host}:{state.port}", flush=True)
        port = state.port
        state.thread.join()  # it ends when the process of a session was lost
        state.sock.close()


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
