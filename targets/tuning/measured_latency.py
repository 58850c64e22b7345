"""Measured latency of graphs and ops, for passes that decide by time: compiled, and run on this machine.

Graphs that are compared are timed alternately, so that what slows the machine for a while slows both. They are timed in
blocks of executions: after another program's weights have gone through the caches, a network needs several before it is
as fast as when it runs alone, and a smaller one needs fewer. Other programs only ever add time: what counts is the
fastest of many executions, which a busy machine leaves undisturbed now and then. Programs that do the same work,
whatever their weights, are measured once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...ir import Graph, Op, fingerprint, graph_of
from ...ir.ops import WeightOp
from ..runtime.executable import Executable
from .crowding import Crowding
from .times import GraphTimes, KeptTimes

MOST_PROGRAMS = 64  # that are compiled together …
MOST_BYTES = 256 << 20  # … and the weights that they may have
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
    clear
        Two programs whose times are further apart than this many times their noise need not agree more closely.
    """

    warmup: int = 3
    witnesses: int = 4
    block: int = 6
    least: int = 30
    most: int = 2000
    seconds: float = 0.8
    clear: float = 4.0


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
        Makes programs of graphs to which any passes may have been applied, for this machine; of several together it
        makes them sooner.
    kept
        Times that were measured before, which these are added to, unless other programs were using the processors.
    crowding
        Knows whether they were; by default for calls that use one.
    """

    def __init__(
        self,
        compile: Callable[[Sequence[Graph]], Sequence[Executable]],
        kept: KeptTimes | None = None,
        crowding: Crowding | None = None,
    ) -> None:
        self._compile = compile
        self._kept = kept
        self._crowding = crowding or Crowding(threads=1)
        self._patience = Patience()
        self._measured: dict[tuple[str, ...], GraphTimes] = {}
        self._coming: Iterator[Sequence[Graph]] = iter(())
        self._programs: dict[str, Executable] = {}  # of graphs that will be asked about

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        """Tell what will be asked next: one graph each, or two to compare; drawn, and compiled, when it is needed."""
        self._coming = iter(questions)
        self._programs = {}

    def graph_seconds(self, graph: Graph) -> float:
        """Measured seconds of one execution of ``graph``."""
        (seconds,) = self._times(graph).seconds
        return seconds

    def op_seconds(self, op: Op) -> float:
        """Measured seconds of one execution of ``op`` alone."""
        return self.graph_seconds(graph_of(op))

    def compare(self, before: Graph, after: Graph) -> ComparedLatency:
        """Measured seconds of both graphs, timed alternately."""
        if _work(before) == _work(after):
            seconds = self.graph_seconds(before)
            return ComparedLatency(seconds, seconds, LEAST_NOISE)
        times = self._times(before, after)
        return ComparedLatency(*times.seconds, times.noise)

    def _times(self, *graphs: Graph) -> GraphTimes:
        key = tuple(map(_work, graphs))
        times = self._known(key)
        if times is None:
            samples = samplers(*self._programs_of(graphs))
            with self._crowding.watched():
                series = time_alternately(samples, self._patience)
            noise = max(LEAST_NOISE, *(one.spread for one in series))
            times = GraphTimes(tuple(one.seconds for one in series), noise)
            self._measured[key] = times
            if self._kept is not None and not self._crowding.crowded:
                self._kept.add(key, times)
        return times

    def _known(self, key: tuple[str, ...]) -> GraphTimes | None:
        if key not in self._measured:
            times = None if self._kept is None else self._kept.find(key)
            if times is None:
                return None
            self._measured[key] = times
        return self._measured[key]

    def _programs_of(self, graphs: Sequence[Graph]) -> list[Executable]:
        """Programs for graphs; where they are missing, those that will be needed next are made beside them."""
        missing = {key: graph for graph in graphs if (key := _work(graph)) not in self._programs}
        if missing:
            kept = {key: self._programs[key] for key in map(_work, graphs) if key in self._programs}
            wanted = self._next(missing)
            self._programs = kept | dict(zip(wanted, self._compile(list(wanted.values())), strict=True))
        return [self._programs[_work(graph)] for graph in graphs]

    def _next(self, missing: Mapping[str, Graph]) -> dict[str, Graph]:
        """Graphs to compile together: those that are missing, and some of what will be asked next."""
        wanted = dict(missing)
        size = sum(map(_weight_bytes, wanted.values()))
        while len(wanted) < MOST_PROGRAMS and size < MOST_BYTES:
            question = next(self._coming, None)
            if question is None:
                break
            keys = tuple(map(_work, question))
            if self._known(keys) is None:
                fresh = {key: one for key, one in zip(keys, question, strict=True) if key not in wanted}
                size += sum(map(_weight_bytes, fresh.values()))
                wanted.update(fresh)
        return wanted


def _work(graph: Graph) -> str:
    """What graphs that do the same work have in common."""
    return fingerprint(graph, numbers=False)


def _weight_bytes(graph: Graph) -> int:
    """Of the weights that a graph reads."""
    return sum(op.result.type.bytes for part in graph.parts for op in part.ops if isinstance(op, WeightOp))


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
    """Time programs alternately until the fastest executions of each agree, or it is clear which of two is faster, or
    patience ends."""
    start = time.perf_counter()
    found = [Series(sample, patience) for sample in samples]
    for done in range(patience.block, patience.most + patience.block, patience.block):
        for series in found:
            series.add()
        agreed = done >= patience.least and all(series.spread <= LEAST_NOISE for series in found)
        agreed = agreed or (done >= patience.least // 2 and _is_clear(found, patience))
        is_late = done >= 2 * patience.witnesses and time.perf_counter() - start >= patience.seconds
        if agreed or is_late:
            break
    return found


def _is_clear(found: Sequence[Series], patience: Patience) -> bool:
    """Whether two programs' times are so far apart that their noise does not matter."""
    if len(found) != 2:
        return False
    noise = max(LEAST_NOISE, *(series.spread for series in found))
    fast, slow = sorted(series.seconds for series in found)
    return fast < slow * (1 - patience.clear * noise)
