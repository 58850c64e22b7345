"""How a pass that takes long says what is left."""

from __future__ import annotations

import time
from collections.abc import Callable

_EVERY = 5.0  # seconds


class Remaining:
    """Says now and then how much of some work is done, and how long the rest takes if it goes on like this.

    Parameters
    ----------
    say
        Told for example ``"layers: 12 of 50, 40 s left"``: `PassContext.progress`.
    what
        What is counted.
    total
        How many there are, or None where nobody knows.
    """

    def __init__(self, say: Callable[[str], None], what: str, total: float | None) -> None:
        self._say, self._what, self._total = say, what, total
        self._done = 0.0
        self._began = self._said = time.perf_counter()

    def step(self, done: float = 1) -> None:
        """Some more are done."""
        self._done += done
        now = time.perf_counter()
        if now - self._said < _EVERY:
            return
        self._said = now
        if self._total is None:
            self._say(f"{self._what}: {self._done:.4g}")
            return
        left = (now - self._began) / self._done * max(0.0, self._total - self._done)
        self._say(f"{self._what}: {self._done:.4g} of {self._total:.4g}, {left:.0f} s left")
