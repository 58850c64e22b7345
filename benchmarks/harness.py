"""Fair timing of several runtimes in one process, and the record of it.

Calling runtimes in turn is unfair: their thread pools spin on for a while after a call and take the cores
from the next one. So each runtime is called in blocks. Before a block there is a pause in which the other
pools go to sleep, the first calls of a block warm caches and wake the threads and are dropped, and the order
of the blocks rotates from round to round, so that slow drifts of the machine hit all alike.
"""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import psutil

from tersor.targets.machines.catalog import processor_name

from .pace import Pace, pace_of
from .peers import Arrays, Precision, Runner

if TYPE_CHECKING:
    from tersor.targets import Executable

PACKAGES = (
    "tersor",
    "torch",
    "apache-tvm",
    "onnxruntime",
    "openvino",
    "ncnn",
    "pnnx",
    "transformers",
    "pytorchcv",
    "numpy",
)


MadeT = TypeVar("MadeT", bound=Runner)


class ExecutableRunner:
    """A compiled model as a runner."""

    def __init__(self, executable: Executable, name: str = "tersor") -> None:
        self.name = name
        self.executable = executable

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return [output.numpy() for output in self.executable.flat(*inputs)]


@dataclass(frozen=True)
class Schedule:
    """How long and in which portions to measure.

    Parameters
    ----------
    rounds : int
        Blocks per runner.
    block_seconds : float
        Time that the counted calls of a block should take.
    minimum_calls, maximum_calls : int
        Bounds on the counted calls of a block.
    dropped_calls : int
        Calls at the start of each block that are not counted.
    pause_seconds : float
        Sleep before each block.
    tries : int
        How often a block is measured at most, if the processors were slow meanwhile (see `benchmarks.pace`).
    """

    rounds: int = 7
    block_seconds: float = 0.5
    minimum_calls: int = 5
    maximum_calls: int = 200
    dropped_calls: int = 3
    pause_seconds: float = 0.3
    tries: int = 4

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.dropped_calls < 1 or self.tries < 1:
            raise ValueError("a schedule needs at least one round, one dropped call per block and one try")
        if not 1 <= self.minimum_calls <= self.maximum_calls:
            raise ValueError("a schedule needs 1 <= minimum_calls <= maximum_calls")


@dataclass(frozen=True)
class LatencyStatistics:
    """Order statistics of one runner's counted calls, in seconds; how many of its blocks had slow processors."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    block_medians: tuple[float, ...]
    calls: int
    slow_blocks: int = 0

    @classmethod
    def from_blocks(cls, blocks: Sequence[Sequence[float]], slow_blocks: int = 0) -> LatencyStatistics:
        """Summarize the call times (seconds) of all blocks."""
        samples = np.concatenate([np.asarray(block) for block in blocks])
        lower, median, upper = (float(value) for value in np.percentile(samples, (25, 50, 75)))
        medians = tuple(float(np.median(block)) for block in blocks)
        return cls(median, lower, upper, float(samples.min()), medians, samples.size, slow_blocks)


@dataclass(frozen=True)
class Row:
    """One runner's result on one model."""

    runner: str
    latency: LatencyStatistics
    build_seconds: float
    difference: float  # largest absolute one to the reference outputs, over their largest absolute value


@dataclass(frozen=True)
class Comparison:
    """All runners' results on one model, with the precision that they computed in, and the samples of a call."""

    model: str
    threads: int
    rows: tuple[Row, ...]
    precision: Precision = Precision.FLOAT32
    batch: int = 1

    def median(self, runner: str) -> float:
        """Return the median latency of `runner` in seconds; KeyError if it did not take part."""
        return {row.runner: row.latency.median for row in self.rows}[runner]

    def fastest(self, runners: Sequence[str]) -> str | None:
        """Return the one of `runners` with the smallest median, of those that took part."""
        medians = {row.runner: row.latency.median for row in self.rows if row.runner in runners}
        return min(medians, key=medians.__getitem__, default=None)

    def speedup(self, runner: str, over: Sequence[str]) -> float | None:
        """Return the smallest median of those in `over` that took part, over that of `runner`; above 1 is faster."""
        other = self.fastest(over)
        if other is None or self.fastest([runner]) is None:
            return None
        return self.median(other) / self.median(runner)


def timed(make: Callable[[], MadeT]) -> tuple[MadeT, float]:
    """What is made, and the seconds that it took."""
    begin = time.perf_counter()
    return make(), time.perf_counter() - begin


def compare(
    model: str,
    built: Sequence[tuple[Runner, float]],
    inputs: Arrays,
    threads: int,
    *,
    expected: Arrays | None = None,
    schedule: Schedule | None = None,
    precision: Precision = Precision.FLOAT32,
    batch: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Check and time runners of one model.

    Parameters
    ----------
    built
        Runners, and the seconds that each took to build.
    expected
        What outputs are compared with; those of the first runner if omitted.
    """
    runners = [runner for runner, _ in built]
    if expected is None:
        expected = [output.copy() for output in runners[0].run(inputs)]
    gaps = [difference(expected, runner.run(inputs)) for runner in runners]
    latencies = measure(runners, inputs, schedule, progress, pace_of(threads))
    rows = zip(latencies, latencies.values(), (seconds for _, seconds in built), gaps, strict=True)
    return Comparison(model, threads, tuple(Row(*row) for row in rows), precision, batch)


def measure(
    runners: Sequence[Runner],
    inputs: Arrays,
    schedule: Schedule | None = None,
    progress: Callable[[str], None] = lambda _: None,
    pace: Pace | None = None,
) -> dict[str, LatencyStatistics]:
    """Time `runners` on the same inputs, block by block.

    Parameters
    ----------
    runners : sequence of Runner
        Runners with distinct names.
    inputs : sequence of np.ndarray
        Arguments of each call.
    schedule : Schedule, optional
        Portions; the default takes about 6 s per runner.
    progress : callable, optional
        Told the runner's name when each of its blocks starts.
    pace : Pace, optional
        Judges the processors; without one, no block is measured again.

    Returns
    -------
    dict of str to LatencyStatistics
        In the order of `runners`.
    """
    names = [runner.name for runner in runners]
    if len(set(names)) != len(names):
        raise ValueError(f"runner names must be distinct, got {names}")
    schedule = schedule or Schedule()
    blocks: dict[str, list[list[float]]] = {name: [] for name in names}
    slow = dict.fromkeys(names, 0)
    collecting = gc.isenabled()
    gc.disable()  # a collection within a call would be charged to the runner
    try:
        for index in range(schedule.rounds):
            start = index % len(runners)
            for runner in (*runners[start:], *runners[:start]):
                progress(runner.name)
                gc.collect()
                block = partial(_block, runner, inputs, schedule)
                seconds, fast = (
                    (block(), True) if pace is None else pace.undisturbed(block, schedule.tries, schedule.pause_seconds)
                )
                blocks[runner.name].append(seconds)
                slow[runner.name] += not fast
    finally:
        if collecting:
            gc.enable()
    return {name: LatencyStatistics.from_blocks(times, slow[name]) for name, times in blocks.items()}


def _block(runner: Runner, inputs: Arrays, schedule: Schedule) -> list[float]:
    """Return the seconds of each counted call of one block."""
    time.sleep(schedule.pause_seconds)
    dropped = [_call(runner, inputs) for _ in range(schedule.dropped_calls)]
    wanted = round(schedule.block_seconds / min(dropped))
    calls = min(max(wanted, schedule.minimum_calls), schedule.maximum_calls)
    return [_call(runner, inputs) for _ in range(calls)]


def _call(runner: Runner, inputs: Arrays) -> float:
    begin = time.perf_counter()
    runner.run(inputs)
    return time.perf_counter() - begin


def difference(reference: Arrays, outputs: Arrays) -> float:
    """Return the largest absolute difference, relative to the reference's largest absolute value.

    With several outputs, that of the worst.

    Raises
    ------
    ValueError
        If the number of outputs or a shape differs.
    """
    if len(reference) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs where the reference has {len(reference)}")
    worst = 0.0
    for index, (expected, actual) in enumerate(zip(reference, outputs, strict=True)):
        if expected.shape != actual.shape:
            raise ValueError(f"output {index} has shape {actual.shape}, the reference {expected.shape}")
        scale = float(np.abs(expected).max()) or 1.0
        gap = float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()) / scale
        worst = gap if np.isnan(gap) else max(worst, gap)
    return worst


def machine() -> dict[str, str | int | float]:
    """Describe this machine: processor, cores, memory, operating system, interpreter."""
    return {
        "processor": processor_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "logical_cores": psutil.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, leaving out those that are not installed."""
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: installed[name] for name in packages if name in installed}
