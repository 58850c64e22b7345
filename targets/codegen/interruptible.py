"""Native calls of many seconds, which Python's signals do not reach: Ctrl-C takes effect while they go on.

A call runs in a thread of its own. Whoever waits for it gets KeyboardInterrupt at once; the call itself cannot be
stopped and ends later, with nobody to take its result. It only reads what it was given, so it may.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_NAME = "tersor native call"

T = TypeVar("T")


def call_interruptibly(call: Callable[[], T]) -> T:
    """What ``call()`` returns or raises."""
    (result,) = call_in_parallel([call], 1)
    return result


def call_in_parallel(calls: Iterable[Callable[[], T]], most: int) -> list[T]:
    """What all ``calls`` return, in order; up to ``most`` are made at a time, the first ones while others are drawn.

    Where one raises, or drawing them does, those that have not begun are left out.
    """
    pool = ThreadPoolExecutor(most, thread_name_prefix=_NAME)
    try:
        futures = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def is_call_running() -> bool:
    """Whether a call is still running; if nobody waits for it any more, Python does so when it exits."""
    return any(thread.name.startswith(_NAME) for thread in threading.enumerate())
