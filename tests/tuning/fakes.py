"""Tasks and a measurer that need neither a compiler nor a quiet machine: times are a formula plus seeded noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import numpy as np

from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from tersor.targets.templates.conv2d.winograd_spec import WinogradKnobs
from tersor.targets.templates.option import Option, Workload
from tersor.targets.tuning.estimate import estimate_seconds
from tersor.targets.tuning.measure import Measurer
from tersor.targets.tuning.outcome import Outcome, Status
from tersor.targets.tuning.task import Task

TARGET = resolve_cpu("x86:znver4")
SHAPES = ((64, 56, 64), (128, 28, 128), (256, 14, 256), (512, 7, 512), (96, 35, 80), (160, 17, 224))


def conv_task(channels: int, size: int, outputs: int, kernel: int = 3, weight: int = 1) -> Task:
    """A convolution that keeps the size of the image."""
    spec = Conv2dSpec(1, channels, size, size, outputs, (kernel, kernel), (1, 1), (kernel // 2,) * 4)
    return Task(Workload("conv2d", spec), "", TARGET, weight, spec.macs, 0, f"conv{channels}x{size}")


def conv_tasks(count: int = len(SHAPES)) -> list[Task]:
    """The first tasks of a small network."""
    return [conv_task(*shape) for shape in SHAPES[:count]]


def true_seconds(task: Task, option: Option) -> float:
    """What the fake machine takes: the analytic estimate, and what that knows nothing about."""
    seconds = estimate_seconds(task.workload.spec, option.knobs, task.target)
    knobs = option.knobs
    if isinstance(knobs, Conv2dKnobs):
        return seconds * (1.0 + 0.25 * (knobs.vectors == 2) + 0.04 * abs(knobs.rows - 2))
    if isinstance(knobs, WinogradKnobs):
        return seconds * (1.0 + 0.5 * (knobs.m == 6) + 0.3 * (knobs.order != "tiles"))
    return seconds


class FakeMeasurer(Measurer):
    """A `Measurer` with a fake clock.

    Attributes
    ----------
    seconds_each
        What measuring a candidate takes by that clock.

    Parameters
    ----------
    noise
        Standard deviation of the logarithm of each timing.
    drift
        Factor by which the machine slows down from one batch to the next.
    fails
        The status of an option; ``"ok"`` unless it says otherwise.
    stop_after
        Batches after which the user presses Ctrl-C.
    """

    def __init__(
        self,
        noise: float = 0.01,
        drift: float = 1.0,
        fails: Callable[[Option], Status] = lambda option: "ok",
        stop_after: int | None = None,
    ) -> None:
        self.seconds = 0.0
        self.seconds_each = 0.1
        self.measured: list[tuple[Task, Option]] = []
        self.batches = 0
        self._noise = noise
        self._drift = drift
        self._fails = fails
        self._stop_after = stop_after
        self._generator = np.random.default_rng(0)

    def clock(self) -> float:
        """Fake seconds."""
        return self.seconds

    def outcomes(
        self, task: Task, options: Sequence[Option], incumbent: Option | None, seconds: float
    ) -> Generator[Outcome, None, None]:
        deadline = self.seconds + seconds
        for number, option in enumerate(options):
            if self.seconds >= deadline:
                break
            if self.batches == self._stop_after and number:  # in the middle of a batch
                raise KeyboardInterrupt
            yield self._outcome(task, option, incumbent)
        self.batches += 1

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _outcome(self, task: Task, option: Option, incumbent: Option | None) -> Outcome:
        self.seconds += self.seconds_each
        self.measured.append((task, option))
        status = self._fails(option)
        if status != "ok":
            return Outcome(option, status, detail=f"fake {status}")
        seconds, baseline = self._time(task, option), math.nan
        if option == incumbent:
            baseline = seconds
        elif incumbent is not None and self._fails(incumbent) == "ok":
            baseline = self._time(task, incumbent)
        return Outcome(option, "ok", seconds, 0.01, 10, baseline, "", 0.05)

    def _time(self, task: Task, option: Option) -> float:
        slow = self._drift**self.batches
        return true_seconds(task, option) * slow * math.exp(self._noise * self._generator.standard_normal())
