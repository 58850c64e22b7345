"""A child process that calls functions for its parent, and whose death is an answer like any other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

import psutil

from ...ir import TersorError
from .worker import Cause, Preparation, Reply

ReturnT = TypeVar("ReturnT")

START_TIMEOUT = 120.0  # seconds; importing PyTorch and TVM takes 2 to 4 on an idle machine
_END_TIMEOUT = 5.0
_PROGRAM = f"from {__package__}.worker import main; main()"  # not -m: classes of __main__ cannot be exchanged


class WorkerError(TersorError):
    """A call in a worker process that gave no value."""


class WorkerDiedError(WorkerError):
    """The worker process ended instead of answering.

    Attributes
    ----------
    signal
        Number of the signal that ended it, 0 if none did.
    """

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


class WorkerStartError(WorkerDiedError):
    """The worker process never got ready, and another one would not either."""


class WorkerTimeoutError(WorkerError):
    """The worker process took longer than allowed; it has been ended."""


class CallFailedError(WorkerError):
    """The function raised an exception; the worker goes on."""


class HostError(WorkerError):
    """The function failed for what it found on its machine, a full disk for example; any other would, too."""


class OutOfMemoryError(WorkerError):
    """The function ran out of memory; the worker should be replaced, since what it holds is unknown."""


_ERRORS: dict[Cause, type[WorkerError]] = {
    "memory": OutOfMemoryError,
    "host": HostError,
    "function": CallFailedError,
}


class Worker:
    """A process that has imported what it needs and calls module-level functions, one at a time.

    The process is started at once and gets ready on its own time; `wait_ready` or the first `call` waits for it.
    Interrupts from the keyboard do not reach it. It ends when `close` is called or the parent is gone.

    Parameters
    ----------
    preparation
        What it does first.
    name
        What messages call it.
    """

    def __init__(self, preparation: Preparation, name: str = "worker") -> None:
        self.name = name
        self._ready = False
        self.is_busy = False  # an answer is still to come: no other call may be sent
        with ExitStack() as opened:  # closed here when the process does not start
            try:
                self._stderr = opened.enter_context(tempfile.TemporaryFile())
                self._connection, child = multiprocessing.Pipe()
                opened.enter_context(self._connection)
                with child:
                    self._process = self._start(child.fileno())
            except OSError as error:
                raise WorkerStartError(f"{name} cannot be started: {error}") from error
            opened.pop_all()
        self._send(preparation)

    def _start(self, connection: int) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, str(connection)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            pass_fds=[connection],
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it takes calls; raises WorkerDiedError with its last words, or WorkerTimeoutError."""
        if not self._ready:
            self._receive(START_TIMEOUT, "starting")
            self._ready = True

    def call(self, function: Callable[..., ReturnT], *arguments: object, timeout: float | None = None) -> ReturnT:
        """Call ``function(*arguments)`` in the process: `begin` and `finish`."""
        self.begin(function, *arguments, timeout=timeout)
        return self.finish(function, timeout)

    def begin(self, function: Callable[..., object], *arguments: object, timeout: float | None = None) -> None:
        """Have the process call ``function(*arguments)`` as soon as it is ready; raises WorkerDiedError if it is gone.

        Parameters
        ----------
        function
            Importable by its name in the process.
        timeout
            Seconds after which, and some more, a process whose parent is gone ends itself.
        """
        self.is_busy = True
        self._send((function, arguments, timeout))

    def finish(self, function: Callable[..., ReturnT], timeout: float | None = None) -> ReturnT:
        """Wait for what ``function`` returns, which was begun.

        Parameters
        ----------
        timeout
            Seconds; the process is ended when it takes longer.

        Raises
        ------
        WorkerDiedError, WorkerTimeoutError
            The process is gone.
        CallFailedError, HostError, OutOfMemoryError
            The function raised an exception.
        """
        self.wait_ready()
        reply = self._receive(timeout, getattr(function, "__name__", "calling"))
        self.is_busy = False
        if reply.error:
            raise _ERRORS[reply.cause](reply.error)
        return reply.value

    def kill(self) -> None:
        """End the process from another thread: the call at hand raises WorkerDiedError there."""
        _end_tree(self._process)

    def close(self) -> None:
        """End the process and what it started; may be called twice."""
        self._connection.close()
        _end_tree(self._process)
        self._stderr.close()

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._death("before it took a call") from error

    def _receive(self, timeout: float | None, doing: str) -> Reply:
        try:
            if not self._connection.poll(timeout):
                self.close()
                raise WorkerTimeoutError(f"{self.name} took longer than {timeout:g} s ({doing})")
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death(doing) from error

    def _death(self, doing: str) -> WorkerDiedError:
        """Why the process ended: the signal or exit code, and its last line."""
        try:
            code = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            code = None
        words = self._last_words()
        self.close()
        ending = "closed its connection" if code is None else _describe_exit(code)
        said = f": {words}" if words else ""
        return WorkerDiedError(f"{self.name} {ending} ({doing}){said}", max(0, -(code or 0)))

    def _last_words(self) -> str:
        """The line that names an exception where there is one; a crash dump lists threads and modules after it."""
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return (fatal or lines or [""])[-1]


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ", as Linux does when memory runs out" if -code == signal.SIGKILL else ""
    return f"was ended by signal {-code} ({signal.Signals(-code).name}{hint})"


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants, and wait for it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait(_END_TIMEOUT)
    psutil.wait_procs(family, timeout=_END_TIMEOUT)
