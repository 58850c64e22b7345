"""Whether other programs were using the processors while something was timed.

Other programs only ever add time, and the fastest of many executions forgives most of it; but not where they never
leave a call as many processors as it has threads. A time that was measured then is good enough to compare with one that
was measured beside it, and not with any of another hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import psutil

WINDOW = 0.25  # seconds of timing that a judgement needs, since processor time is counted in hundredths
ALLOWED = 0.2  # processors that others may take of those that a call needs


@dataclass(frozen=True)
class ProcessorTime:
    """Clocks, in seconds.

    Attributes
    ----------
    wall
        Of the wall.
    all
        During which processors worked, or were taken away from this machine; the sum over all processors.
    own
        During which they worked for this process.
    """

    wall: float
    all: float
    own: float

    @classmethod
    def now(cls) -> ProcessorTime:
        """As the system counts it."""
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # are in user and nice, too
        return cls(time.perf_counter(), busy, own.user + own.system)


class Crowding:
    """Adds up what others use while this process times programs.

    Parameters
    ----------
    threads
        Of one call of what is timed.
    processors
        Of the machine; by default all.
    read
        Reads the clocks.
    """

    def __init__(
        self,
        threads: int,
        processors: int | None = None,
        read: Callable[[], ProcessorTime] = ProcessorTime.now,
    ) -> None:
        self._spare = (processors or psutil.cpu_count() or 1) - threads
        self._read = read
        self._wall = self._others = 0.0
        self.crowded = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While programs are timed, and nothing else is done by this process and its children."""
        before = self._read()
        yield
        wall, everything, own = (b - a for a, b in zip(astuple(before), astuple(self._read()), strict=True))
        self._wall += wall
        self._others += everything - own
        if self._wall >= WINDOW:
            self.crowded = self._others / self._wall > self._spare + ALLOWED
            self._wall = self._others = 0.0
