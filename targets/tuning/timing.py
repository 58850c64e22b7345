"""Timing one kernel beside the best one known, on a machine whose speed drifts.

Candidate and incumbent are timed in turn, in blocks: what slows the machine for a second slows both, and their ratio
stays. Each block drops its first call, which pays for what the other kernel pushed out of the caches. What other
programs do only ever adds time, so the slower half of the blocks is left out of the result.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Run = Callable[[], object]
Clock = Callable[[], float]

_FEWEST_BLOCKS = 2  # however slow a kernel is
_LONG_CALL = 10e-3  # seconds; a call that long has refilled the caches by itself


@dataclass(frozen=True)
class TimingPolicy:
    """When a measurement is good enough.

    Attributes
    ----------
    warmup
        Calls of each kernel before anything is timed.
    block_seconds
        A block calls its kernel until about this much time is covered, at least once.
    min_blocks, max_blocks
        Blocks of each kernel.
    spread
        Stop when the quartiles of the faster half of the blocks are this close together, relative to its median.
    max_seconds
        Stop after two blocks when so much time has been spent, whatever the spread.
    cut
        Stop after ``min_blocks // 2`` blocks when the candidate's best is this many times slower than the incumbent's.
    """

    warmup: int = 2
    block_seconds: float = 1e-3
    min_blocks: int = 8
    max_blocks: int = 40
    spread: float = 0.03
    max_seconds: float = 0.5
    cut: float = 1.5

    def __post_init__(self) -> None:
        if not 2 <= self.min_blocks <= self.max_blocks:
            raise ValueError(f"blocks must be at least 2, and no more at least than at most: {self}")
        if min(self.block_seconds, self.spread, self.max_seconds) <= 0 or self.cut <= 1:
            raise ValueError(f"times and spread must be positive and the cut more than 1: {self}")


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes
    ----------
    seconds
        Median, over the faster half of the blocks, of the mean time of one call.
    spread
        Distance of the quartiles of that half over its median.
    repeats
        Timed calls of the candidate.
    baseline
        The same for the incumbent; NaN without one.
    """

    seconds: float
    spread: float
    repeats: int
    baseline: float


class _Series:
    """The block means of one kernel."""

    def __init__(self, run: Run, policy: TimingPolicy, clock: Clock) -> None:
        self._run = run
        self._clock = clock
        for _ in range(policy.warmup + 1):
            start = clock()
            run()
            once = clock() - start
            if once > policy.max_seconds / 2:
                break
        self.calls = max(1, math.ceil(policy.block_seconds / once)) if once > 0 else 1
        self._drops_first = once < _LONG_CALL
        self.samples: list[float] = []

    def block(self) -> None:
        """Time one block."""
        if self._drops_first:
            self._run()
        start = self._clock()
        for _ in range(self.calls):
            self._run()
        self.samples.append((self._clock() - start) / self.calls)

    @property
    def faster_half(self) -> list[float]:
        """The means of the undisturbed blocks."""
        return sorted(self.samples)[: -(-len(self.samples) // 2)]


def spread_of(samples: Sequence[float]) -> float:
    """Distance of the quartiles over the median; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle


def measure(
    candidate: Run, incumbent: Run | None, policy: TimingPolicy | None = None, clock: Clock = time.perf_counter
) -> Timing:
    """Time ``candidate``, interleaved with ``incumbent`` if there is one.

    Parameters
    ----------
    candidate, incumbent
        Call a kernel once.
    policy
        When to stop.
    clock
        Seconds, for tests.
    """
    policy = policy or TimingPolicy()
    start = clock()
    ours = _Series(candidate, policy, clock)
    theirs = None if incumbent is None else _Series(incumbent, policy, clock)
    for done in range(1, policy.max_blocks + 1):
        if theirs is not None:
            theirs.block()
        ours.block()
        if (
            theirs is not None
            and done >= policy.min_blocks // 2
            and min(ours.samples) > policy.cut * min(theirs.samples)
        ):
            break
        if done >= policy.min_blocks and spread_of(ours.faster_half) <= policy.spread:
            break
        if done >= _FEWEST_BLOCKS and clock() - start >= policy.max_seconds:
            break
    return Timing(
        seconds=statistics.median(ours.faster_half),
        spread=spread_of(ours.faster_half),
        repeats=ours.calls * len(ours.samples),
        baseline=math.nan if theirs is None else statistics.median(theirs.faster_half),
    )
