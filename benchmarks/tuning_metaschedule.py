"""Seconds until a convolution's kernel is as fast as MetaSchedule gets it: by MetaSchedule, and by Tersor's own search.

Both build in preloaded pools, run in a process of their own and start from an empty log. Both clocks begin before the
first of their processes is started, run on while these import what they need, and are read when a kernel's numbers have
been checked and its time is known; the modules of this process were imported before either. MetaSchedule searches
schedules of TVM's own definition of the convolution (NCHW, batch 1), for a given time.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from rich.table import Table
from tvm import te, topi

import tersor
from benchmarks.tables import new_table
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.option import Option
from tersor.targets.tuning import metaschedule
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.measure import LocalMeasurer
from tersor.targets.tuning.metaschedule import BestSoFar
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.scheduler import Budget
from tersor.targets.tuning.session import TuningSession
from tersor.targets.tuning.task import Task

PIPELINE = "O3,fold-batchnorm,layout"
NEAR = 1.02  # of the best that MetaSchedule found: reached when a kernel is that close


@dataclass(frozen=True)
class Convolution:
    """A 3x3 or pointwise convolution with stride 1 that keeps the size of the image."""

    channels: int
    size: int
    outputs: int
    kernel: int

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.channels * self.outputs * self.kernel**2 * self.size**2

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}, {self.channels} to {self.outputs} channels, {self.size}x{self.size}"


CONVOLUTIONS = (
    Convolution(64, 56, 64, 3),
    Convolution(128, 28, 128, 3),
    Convolution(256, 14, 1024, 1),
)


@dataclass(frozen=True)
class Race:
    """How long both took to the same speed.

    Attributes
    ----------
    convolution
        What was computed.
    goal
        Seconds of a call that both reached: MetaSchedule's best within its time, and 2 %.
    theirs, ours
        Seconds of tuning until a kernel was that fast; ours is infinite if none was.
    their_trials, our_trials
        Candidates measured by then.
    their_best, our_best
        Seconds of a call of the fastest kernels.
    """

    convolution: str
    macs: int
    goal: float
    theirs: float
    ours: float
    their_trials: int
    our_trials: int
    their_best: float
    our_best: float

    @property
    def ratio(self) -> float:
        """How many times sooner Tersor is there."""
        return self.theirs / self.ours


def race(convolution: Convolution, target: Cpu, their_seconds: float, our_seconds: float, seed: int = 0) -> Race:
    """Tune one convolution by both.

    Parameters
    ----------
    target
        This machine; ``target.cores`` is the number of threads.
    their_seconds, our_seconds
        Time for each.
    seed
        Of both searches.
    """
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        theirs = metaschedule.tune(
            definition(convolution), target, Path(folder), trials=10_000, max_seconds=their_seconds, seed=seed
        )
    goal = NEAR * theirs.seconds
    first = next(point for point in theirs.history if point.best <= goal)
    history = search(task_of(convolution, target), our_seconds, seed)
    reached = next((point for point in history if point.best <= goal), BestSoFar(math.inf, 0, math.nan))
    return Race(
        convolution=str(convolution),
        macs=convolution.macs,
        goal=goal,
        theirs=first.elapsed,
        ours=reached.elapsed,
        their_trials=first.trials,
        our_trials=reached.trials,
        their_best=theirs.seconds,
        our_best=history[-1].best,
    )


def definition(convolution: Convolution) -> object:
    """The convolution as a function of TVM's tensor expressions, not scheduled."""
    side, kernel = convolution.size, convolution.kernel
    data = te.placeholder((1, convolution.channels, side, side), name="data")
    weight = te.placeholder((convolution.outputs, convolution.channels, kernel, kernel), name="weight")
    return te.create_prim_func([data, weight, topi.nn.conv2d(data, weight, 1, kernel // 2, 1)])


def task_of(convolution: Convolution, target: Cpu) -> Task:
    """The convolution as a task for Tersor's search."""
    module = torch.nn.Conv2d(
        convolution.channels, convolution.outputs, convolution.kernel, padding=convolution.kernel // 2, bias=False
    )
    example = torch.zeros(1, convolution.channels, convolution.size, convolution.size)
    graph = tersor.run_passes(tersor.from_torch(module.eval(), (example,)), PIPELINE, target=target)
    return next(task for task in extract_tasks(graph, target) if task.workload.kind == "conv2d")


class Stopwatch(LocalMeasurer):
    """Notes when each outcome was known, and the best so far."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.history: list[BestSoFar] = []
        super().__init__()

    def outcomes(
        self, task: Task, options: Sequence[Option], incumbent: Option | None, seconds: float
    ) -> Generator[Outcome, None, None]:
        """See `LocalMeasurer.outcomes`."""
        for outcome in super().outcomes(task, options, incumbent, seconds):
            before = self.history[-1].best if self.history else math.inf
            best = min(before, outcome.seconds) if outcome.ok else before
            self.history.append(BestSoFar(time.perf_counter() - self._begin, len(self.history) + 1, best))
            yield outcome


def search(task: Task, seconds: float, seed: int) -> list[BestSoFar]:
    """Tune one task from nothing; the best after each trial."""
    with Stopwatch() as measurer:
        measurer.start()
        TuningSession([task], measurer, Budget(seconds=seconds), seed=seed).run()
        return measurer.history


def run(
    convolutions: Sequence[Convolution] = CONVOLUTIONS,
    *,
    threads: int = 2,
    their_seconds: float = 180.0,
    our_seconds: float = 60.0,
) -> list[Race]:
    """Race on each convolution."""
    metaschedule.load_intrinsics("x86")
    for module in ("tvm.s_tir.meta_schedule", "xgboost"):  # neither side's clock shall count imports in this process
        import_module(module)
    target = replace(resolve_cpu("x86:native"), cores=threads)
    return [race(one, target, their_seconds, our_seconds) for one in convolutions]


def table(races: Sequence[Race]) -> Table:
    """The results for people."""
    rows = [
        (
            one.convolution,
            f"{2e-9 * one.macs / one.goal:.0f}",
            f"{one.theirs:.0f} s, {one.their_trials} trials",
            f"{one.ours:.1f} s, {one.our_trials} trials",
            f"{one.ratio:.0f}x",
            f"{2e-9 * one.macs / one.their_best:.0f} GFLOP/s",
            f"{2e-9 * one.macs / one.our_best:.0f} GFLOP/s",
        )
        for one in races
    ]
    columns = ("convolution", "GFLOP/s", "MetaSchedule", "Tersor", "sooner", "MetaSchedule's best", "Tersor's best")
    return new_table("Seconds of tuning to the same speed", columns, rows)
