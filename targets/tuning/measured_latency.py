"""Measured latency of graphs and ops, for passes that decide by time: compiled, and run on this machine.

Graphs that are compared are timed alternately, so that what slows the machine for a while slows both. They are timed in
blocks of executions: after another program's weights have gone through the caches, a network needs several before it is
as fast as when it runs alone, and a smaller one needs fewer. Other programs only ever add time: what counts is the
fastest of many executions, which a busy machine leaves undisturbed now and then. Programs that do the same work,
whatever their weights, are measured once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir import Graph, Op, fingerprint, graph_of
from ..runtime.executable import Executable

LEAST_NOISE = 0.02  # relative: what two timings of one program differ by on a quiet machine
CONVERSION = "relayout"  # template of the kernels that change a layout

Sample = Callable[[], float]  # executes a program once; returns seconds


@dataclass(frozen=True)
class Patience:
    """When a measurement is good enough.

    Attributes
    ----------
    warmup
        Executions before anything is timed.
    witnesses
        How many of the fastest executions of each program must agree, within `LEAST_NOISE`, to stop.
    block
        Timed executions in a row.
    least, most
        Timed executions of each program.
    seconds
        Stop when so much time has been spent and there are twice as many executions as witnesses, agreed or not.
    """

    warmup: int = 3
    witnesses: int = 4
    block: int = 6
    least: int = 30
    most: int = 2000
    seconds: float = 0.8


@dataclass(frozen=True)
class ComparedLatency:
    """Seconds of one execution of two graphs, and the share of a time that chance explains."""

    before: float
    after: float
    noise: float


class MeasuredLatency:
    """Implements `tersor.passes.base.Latency` by running programs.

    A graph's inputs and outputs are row-major. Where a program begins or ends with their conversion to channel blocks
    and back, as that of a single layer does, the conversion does not count: in its network the layer has none.

    Parameters
    ----------
    compile
        Makes a program of a graph to which any passes may have been applied, for this machine.
    """

    def __init__(self, compile: Callable[[Graph], Executable]) -> None:
        self._compile = compile
        self._patience = Patience()
        self._pairs: dict[tuple[str, str], ComparedLatency] = {}
        self._singles: dict[str, float] = {}

    def graph_seconds(self, graph: Graph) -> float:
        """Measured seconds of one execution of ``graph``."""
        key = fingerprint(graph, numbers=False)
        if key not in self._singles:
            (series,) = time_alternately(samplers(self._compile(graph)), self._patience)
            self._singles[key] = series.seconds
        return self._singles[key]

    def op_seconds(self, op: Op) -> float:
        """Measured seconds of one execution of ``op`` alone."""
        return self.graph_seconds(graph_of(op))

    def compare(self, before: Graph, after: Graph) -> ComparedLatency:
        """Measured seconds of both graphs, timed alternately."""
        keys = (fingerprint(before, numbers=False), fingerprint(after, numbers=False))
        if keys[0] == keys[1]:
            seconds = self.graph_seconds(before)
            return ComparedLatency(seconds, seconds, LEAST_NOISE)
        if keys not in self._pairs:
            old, new = time_alternately(samplers(self._compile(before), self._compile(after)), self._patience)
            self._pairs[keys] = ComparedLatency(old.seconds, new.seconds, max(old.spread, new.spread, LEAST_NOISE))
        return self._pairs[keys]


def samplers(*programs: Executable) -> list[Sample]:
    """What executes each program with random inputs, and tells the seconds that it took.

    Whole calls are timed; kernel by kernel where one of the programs converts layouts at its borders.
    """
    inner = [_without_conversions(program) for program in programs]
    whole = all(part == slice(0, len(program.info.kernels)) for part, program in zip(inner, programs, strict=True))
    return [_sampler(program, None if whole else part) for program, part in zip(programs, inner, strict=True)]


def _without_conversions(program: Executable) -> slice:
    """The kernels from the first to the last one that computes; all of them where none does."""
    computes = [index for index, kernel in enumerate(program.info.kernels) if kernel.template != CONVERSION]
    return slice(computes[0], computes[-1] + 1) if computes else slice(0, len(program.info.kernels))


def _sampler(program: Executable, kernels: slice | None) -> Sample:
    inputs = program.random_inputs()

    def whole() -> float:
        begin = time.perf_counter()
        program(*inputs)
        return time.perf_counter() - begin

    return whole if kernels is None else lambda: sum(program.kernel_seconds(*inputs)[kernels])


class Series:
    """The timed executions of one program."""

    def __init__(self, sample: Sample, patience: Patience) -> None:
        self._sample = sample
        self._patience = patience
        self._seconds: list[float] = []
        for _ in range(patience.warmup):
            sample()

    def add(self) -> None:
        """Execute once untimed, which pays for most of what another program pushed out of the caches; then a block."""
        self._sample()
        self._seconds.extend(self._sample() for _ in range(self._patience.block))

    @property
    def seconds(self) -> float:
        """The slowest of the fastest few: a single one might be an error of the clock."""
        return self._fastest()[-1]

    @property
    def spread(self) -> float:
        """How far apart the fastest few are, relative to their slowest."""
        fastest = self._fastest()
        return (fastest[-1] - fastest[0]) / fastest[-1]

    def _fastest(self) -> list[float]:
        return sorted(self._seconds)[: self._patience.witnesses]


def time_alternately(samples: Sequence[Sample], patience: Patience) -> list[Series]:
    """Time programs alternately until the fastest executions of each agree, or patience ends."""
    start = time.perf_counter()
    found = [Series(sample, patience) for sample in samples]
    for done in range(patience.block, patience.most + patience.block, patience.block):
        for series in found:
            series.add()
        agreed = done >= patience.least and all(series.spread <= LEAST_NOISE for series in found)
        is_late = done >= 2 * patience.witnesses and time.perf_counter() - start >= patience.seconds
        if agreed or is_late:
            break
    return found
