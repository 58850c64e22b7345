"""Whether the processors deliver now what they can: they do not where somebody else's work shares their cores.

The processors of a virtual machine are threads of cores, and what runs on a core's other thread is hidden from it: the
work of another machine, or of a second processor of the same machine. For seconds or minutes, calls then take up to
twice as long, and no clock of the system says so. Here multiply-adds on registers, which need nothing but the cores,
are timed for some milliseconds before and after a measurement. If they were slow, it is repeated.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TypeVar

from benchmarks.probe import MultiplyAdds
from tersor.targets.machines.catalog import resolve_cpu

SHARE = 0.9  # of the best rate: below, the processors are slow

ResultT = TypeVar("ResultT")


class Pace:
    """Repeats what was measured while the processors were slower than they have been.

    Parameters
    ----------
    rate
        Measures how much work is done per second now, in milliseconds.
    pause
        Waits so many seconds, for other programs' threads to fall asleep.
    """

    def __init__(self, rate: Callable[[], float], pause: Callable[[float], None] = time.sleep) -> None:
        self._rate = rate
        self._pause = pause
        self._best = rate()

    def undisturbed(self, measure: Callable[[], ResultT], tries: int, pause_seconds: float) -> tuple[ResultT, bool]:
        """What ``measure`` returns, and whether the processors were fast before and after it.

        It is called again until they were, but no more than ``tries`` times, which is at least 1. Each time, so many
        pauses are made at most until the processors are fast.
        """
        for left in reversed(range(tries)):
            before = self._wait(tries, pause_seconds)
            result = measure()
            self._pause(pause_seconds)
            fast = self._fast(min(before, self._measured()))
            if fast or not left:
                break
        return result, fast

    def _wait(self, tries: int, pause_seconds: float) -> float:
        """The rate at which a measurement begins."""
        for _ in range(tries):
            self._pause(pause_seconds)
            rate = self._measured()
            if self._fast(rate):
                break
        return rate

    def _measured(self) -> float:
        rate = self._rate()
        self._best = max(self._best, rate)
        return rate

    def _fast(self, rate: float) -> bool:
        return rate >= SHARE * self._best


@functools.cache
def pace_of(threads: int) -> Pace:
    """The pace of so many of this machine's processors; one for all measurements, since it knows the best rate."""
    work = MultiplyAdds(resolve_cpu("x86:native"), threads, steps=20_000)
    return Pace(lambda: work.rate(repetitions=3))
