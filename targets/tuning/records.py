"""One measurement with everything that identifies it: what stands in one line of a log."""

from __future__ import annotations

import datetime
import functools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

from ..codegen.options import Options
from ..machines.catalog import processor_name
from ..machines.target import Cpu
from ..templates.option import Option, Workload
from ..templates.registry import template_version
from .outcome import Outcome
from .task import Task

SCHEMA = 1  # of a log line; readers count and ignore later ones
NOISE = 0.01  # an option must beat the default by more
CONFIRMATIONS = 2  # measurements of an option, beside the one that found it, before it replaces the default

Purpose = Literal["trial", "final", "random"]


@dataclass(frozen=True)
class Provenance:
    """Where and when something was measured.

    Attributes
    ----------
    template_version, tvm
        Versions of the template's code and of apache-tvm.
    host
        Name of the processor.
    time
        UTC, in ISO 8601.
    """

    template_version: int
    tvm: str
    host: str
    time: str


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes
    ----------
    task, outcome
        What was measured, and what came of it. ``outcome.baseline`` is the analytic default's time.
    provenance
        Where and when.
    purpose
        ``"trial"``: chosen by the search; ``"final"``: measured again to decide what is used; ``"random"``: picked
        uniformly from all options of the workload, so that it tells what an option is like on average.
    is_shipped
        Whether it came with Tersor; which folder it was read from tells, not its line.
    """

    task: Task
    outcome: Outcome
    provenance: Provenance
    purpose: Purpose = "trial"
    is_shipped: bool = field(default=False, compare=False)

    @classmethod
    def now(cls, task: Task, outcome: Outcome, purpose: Purpose = "trial") -> Record:
        """A record of what this process has just measured."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        version = template_version(outcome.option.template)
        return cls(task, outcome, Provenance(version, tvm_version(), processor_name(), time), purpose)

    @property
    def workload(self) -> Workload:
        """What the record is looked up by."""
        return self.task.workload

    @property
    def option(self) -> Option:
        """What was measured."""
        return self.outcome.option

    @property
    def is_measured(self) -> bool:
        """Whether there are two times to compare: the option's and the analytic default's."""
        return self.outcome.ok and math.isfinite(self.outcome.ratio)


@dataclass(frozen=True)
class Fitting:
    """The records that hold for a target, and how many were ignored for which reason."""

    records: tuple[Record, ...]
    ignored: Counter[str]


def fitting(records: Iterable[Record], target: Cpu) -> Fitting:
    """Keep the records made for ``target`` (with ``target.cores`` threads) by this version's templates and TVM.

    Cache sizes may differ as long as the option is among those of ``target``, and the default beside which it was timed
    is the default there, too.
    """
    kept = []
    ignored: Counter[str] = Counter()
    for record in records:
        reason = why_ignored(record, target)
        if reason:
            ignored[reason] += 1
        else:
            kept.append(record)
    return Fitting(tuple(kept), ignored)


def why_ignored(record: Record, target: Cpu) -> str:
    """Why a record says nothing about ``target``; empty if it does."""
    made, provenance, template = record.task.target, record.provenance, record.option.template
    if made.name != target.name:
        return f"made for {made.name}"
    if _instructions(made) != _instructions(target):
        return f"made for another definition of {made.name}"
    if made.cores != target.cores:
        return f"made for {made.cores} thread{'s' * (made.cores != 1)}"
    if provenance.template_version != template_version(template):  # `tersor.targets.tuning.log` ignores such lines
        return f"made by version {provenance.template_version} of the template {template}"
    if provenance.tvm != tvm_version():
        return f"made with TVM {provenance.tvm}"
    if made != target:  # they differ in their caches
        if record.option not in Options(record.workload, target):
            return "of options that do not suit the caches"
        if _default(record.workload, made) != _default(record.workload, target):
            return "made beside another default, that of other caches"
    return ""


@functools.lru_cache(maxsize=4096)
def _default(workload: Workload, target: Cpu) -> Option:
    return Options(workload, target).default


def _instructions(target: Cpu) -> tuple[object, ...]:
    return target.mcpu, target.vector_bytes, target.vector_registers, target.features


def best(records: Iterable[Record]) -> dict[Workload, Record]:
    """For each workload that an option other than the default is surely better for, a record of the best one.

    The first measurement of an option does not count: it may be why the option was noticed, by luck. An option replaces
    the analytic default only where there are at least `CONFIRMATIONS` others and the upper quartile of their
    ``seconds / baseline`` is below ``1 - NOISE``, so that the gain exceeds what they differ by. Of several such options
    the one with the lowest median is used.
    """
    by_option: dict[tuple[Workload, Option], list[Record]] = defaultdict(list)
    for record in records:
        if record.is_measured:
            by_option[record.workload, record.option].append(record)
    found: dict[Workload, tuple[float, Record]] = {}
    for (workload, _), measured in by_option.items():
        _, *again = sorted(measured, key=lambda record: record.provenance.time)
        if len(again) < CONFIRMATIONS:
            continue
        _, ratio, upper = statistics.quantiles([record.outcome.ratio for record in again], method="inclusive")
        if upper >= 1 - NOISE:
            continue
        if workload not in found or ratio < found[workload][0]:
            found[workload] = ratio, min(again, key=lambda record: abs(record.outcome.ratio - ratio))
    return {workload: record for workload, (_, record) in found.items()}


@functools.cache
def tvm_version() -> str:
    """Version of the installed apache-tvm."""
    return version("apache-tvm")
