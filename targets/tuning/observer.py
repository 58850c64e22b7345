"""Who is told how a tuning session goes on."""

from __future__ import annotations

from collections.abc import Sequence

from .result import BatchReport, TuningResult
from .scheduler import Scheduler
from .search import TaskSearch


class Observer:
    """Is told how a session goes on; every method does nothing by default."""

    def started(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        """The searches, which change from now on."""

    def batch(self, search: TaskSearch, report: BatchReport) -> None:
        """A batch was measured."""

    def say(self, message: str) -> None:
        """Something that the user should know."""

    def finished(self, result: TuningResult) -> None:
        """The end."""
