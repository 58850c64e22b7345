"""Native calls of many seconds, which Python's signals do not reach: Ctrl-C takes effect while they go on.

A call runs in a thread of its own. Whoever waits for it gets KeyboardInterrupt at once; the call itself cannot be
stopped and ends later, with nobody to take its result. It only reads what it was given, so it may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_NAME = "tersor native call"

T = TypeVar("T")


def call_interruptibly(call: Callable[[], T]) -> T:
    """What ``call()`` returns or raises."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, it belongs to who waits
            future.set_exception(error)

    threading.Thread(target=run, name=_NAME).start()
    return future.result()


def is_call_running() -> bool:
    """Whether a call is still running; if nobody waits for it any more, Python does so when it exits."""
    return any(thread.name == _NAME for thread in threading.enumerate())
