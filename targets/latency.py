"""Measured latency of graphs and ops, for passes that decide by time: compiled, and run on this machine.

Two graphs that are compared are timed by turns (`tersor.targets.tuning.timing`), so that what slows the machine for a
while slows both. Programs that do the same work, whatever their weights, are measured once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..ir import Graph, Op, fingerprint, graph_of
from .executable import Executable
from .tuning.timing import Run, Timing, TimingPolicy, measure

LEAST_NOISE = 0.02  # relative: what two timings of one program differ by on a quiet machine
# One decision hangs on each measurement, so no early end, and blocks that outlast a time slice of the scheduler.
POLICY = TimingPolicy(block_seconds=4e-3, min_blocks=12, max_blocks=60, max_seconds=1.0, cut=math.inf)


@dataclass(frozen=True)
class Measured:
    """Seconds of one execution of two graphs, and the share of a time that chance explains."""

    before: float
    after: float
    noise: float


class MeasuredLatency:
    """Implements `tersor.passes.base.Latency` by running programs.

    Times are those of whole programs: inputs and outputs are row-major, so that a layer that works on channel blocks is
    timed with the conversion of its operand and its result. These are the same before and after a rewrite of the layer.

    Parameters
    ----------
    compile
        Makes a program of a graph to which any passes may have been applied, for this machine.
    policy
        When a measurement is good enough.
    time
        Times a candidate by turns with an incumbent, see `tersor.targets.tuning.timing.measure`.
    """

    def __init__(
        self,
        compile: Callable[[Graph], Executable],
        policy: TimingPolicy = POLICY,
        time: Callable[..., Timing] = measure,
    ) -> None:
        self._compile = compile
        self._policy = policy
        self._time = time
        self._pairs: dict[tuple[str, str], Measured] = {}
        self._singles: dict[str, float] = {}

    def graph_seconds(self, graph: Graph) -> float:
        """Measured seconds of one execution of ``graph``."""
        key = fingerprint(graph, numbers=False)
        if key not in self._singles:
            self._singles[key] = self._time(self._run(graph), None, self._policy).seconds
        return self._singles[key]

    def op_seconds(self, op: Op) -> float:
        """Measured seconds of one execution of ``op`` alone."""
        return self.graph_seconds(graph_of(op))

    def compare(self, before: Graph, after: Graph) -> Measured:
        """Measured seconds of both graphs, timed by turns."""
        keys = (fingerprint(before, numbers=False), fingerprint(after, numbers=False))
        if keys[0] == keys[1]:
            seconds = self.graph_seconds(before)
            return Measured(seconds, seconds, LEAST_NOISE)
        if keys not in self._pairs:
            timing = self._time(self._run(after), self._run(before), self._policy)
            self._pairs[keys] = Measured(timing.baseline, timing.seconds, max(timing.spread, LEAST_NOISE))
        return self._pairs[keys]

    def _run(self, graph: Graph) -> Run:
        program = self._compile(graph)
        inputs = program.random_inputs()
        return lambda: program(*inputs)
