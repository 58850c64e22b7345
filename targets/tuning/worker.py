"""What a worker process does: import what it will need, then call the functions that its parent sends, one by one.

Started by `tersor.targets.tuning.process`, with the descriptor of its connection as the only argument. It is no child
of ``multiprocessing``: that would run the user's script again to find functions in it.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil

# Seconds after its parent would have ended it that a hanging worker ends itself: the parent may be gone.
GRACE = 10.0
_MEMORY_WORDS = ("bad_alloc", "can't allocate memory", "cannot allocate memory", "out of memory")
_DISK_WORDS = "no space left on device"

Cause = Literal["function", "host", "memory"]


@dataclass(frozen=True)
class Preparation:
    """What a worker does before it takes calls.

    Attributes
    ----------
    modules
        Modules to import.
    memory_bytes
        How much the process may allocate beyond what it has when ready; None: as much as there is.
    """

    modules: tuple[str, ...] = ()
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to one call: a value, or one line that says what went wrong."""

    value: Any = None  # what the function returned
    error: str = ""
    cause: Cause = "function"  # of the error: the memory or the machine, or else the function itself


def describe_error(error: BaseException) -> str:
    """An exception in one line: its class and the last line of its message, which in TVM's is the one that tells."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def cause_of(error: BaseException) -> Cause:
    """Whether memory ran out, as Python, C++ or PyTorch report it; or files, disk or modules of the machine failed."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return "memory"
    errors = (error, error.__cause__)
    of_host = any(isinstance(one, OSError | ImportError) and not isinstance(one, TimeoutError) for one in errors)
    return "host" if of_host or _DISK_WORDS in text else "function"


def _reply(function: Callable[..., object], arguments: tuple[object, ...]) -> Reply:
    try:
        return Reply(function(*arguments))
    except Exception as error:  # the error boundary between processes: every failure becomes an answer
        return Reply(None, describe_error(error), cause_of(error))


def _prepare(preparation: Preparation) -> None:
    gc.disable()  # what is imported stays: looking through it again and again takes a sixth of the time
    for module in preparation.modules:
        import_module(module)
    gc.freeze()
    gc.enable()
    if preparation.memory_bytes is not None:
        limit = psutil.Process().memory_info().vms + preparation.memory_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _serve(connection: Connection) -> None:
    """Answer calls until the parent closes its end."""
    while True:
        try:
            function, arguments, timeout = connection.recv()
        except EOFError:
            return
        except (AttributeError, ImportError) as error:  # a function that this process cannot find
            connection.send(Reply(None, describe_error(error), cause_of(error)))
            continue
        if timeout is not None:
            faulthandler.dump_traceback_later(timeout + GRACE, exit=True)
        reply = _reply(function, arguments)
        faulthandler.cancel_dump_traceback_later()
        try:
            connection.send(reply)
        except BrokenPipeError:
            return


def main() -> None:
    """Entry point."""
    faulthandler.enable()
    connection = Connection(int(sys.argv[1]))
    _prepare(connection.recv())
    connection.send(Reply(os.getpid()))
    _serve(connection)
