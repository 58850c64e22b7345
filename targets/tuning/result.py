"""What came of a tuning session."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..templates.option import Option
from .records import Record
from .task import Task


@dataclass(frozen=True)
class BatchReport:
    """How well the ranker did on one batch.

    Attributes
    ----------
    task
        Name of the task.
    trials, failed
        Candidates measured, and those of them that did not run.
    correlation
        Spearman's, of predicted and measured times; NaN for fewer than two.
    regret
        How much slower the batch's favourite was than its fastest; NaN when all failed.
    improved
        Relative gain over the best before.
    """

    task: str
    trials: int
    failed: int
    correlation: float
    regret: float
    improved: float


@dataclass(frozen=True)
class TaskResult:
    """What came of one task.

    Attributes
    ----------
    task
        What was tuned.
    option
        What will be used: the default unless another option was confirmed to be faster.
    default_seconds, seconds
        One call with the default and with ``option``; NaN when nothing was timed.
    trials, failed, candidates
        Options measured, those of them that did not run, and how many there are.
    """

    task: Task
    option: Option
    default_seconds: float
    seconds: float
    trials: int
    failed: int
    candidates: int

    @property
    def speedup(self) -> float:
        """Time of the default over that of the option."""
        return self.default_seconds / self.seconds


@dataclass(frozen=True)
class Point:
    """The model's latency, the sum over its tasks, after some seconds and trials of tuning."""

    seconds: float
    trials: int
    latency: float


@dataclass(frozen=True)
class TuningResult:
    """What a session reached.

    Attributes
    ----------
    tasks
        In the order given.
    records
        All that hold for the target: those of earlier sessions first.
    history
        How the model's latency fell.
    batches
        How the ranker did.
    reason
        Why the session ended.
    trials, seconds
        Spent in this session.
    interrupted
        Whether the user stopped it.
    """

    tasks: tuple[TaskResult, ...]
    records: tuple[Record, ...]
    history: tuple[Point, ...]
    batches: tuple[BatchReport, ...]
    reason: str
    trials: int
    seconds: float
    interrupted: bool

    @property
    def untuned_seconds(self) -> float:
        """Sum of all timed kernels with their defaults."""
        return sum(one.task.weight * one.default_seconds for one in self.tasks if one.default_seconds > 0)

    @property
    def tuned_seconds(self) -> float:
        """Sum of all timed kernels as they will be used."""
        return sum(one.task.weight * one.seconds for one in self.tasks if one.seconds > 0)

    @property
    def failures(self) -> Counter[str]:
        """How often candidates failed in which way, over all records."""
        return Counter(record.outcome.status for record in self.records if not record.outcome.ok)
