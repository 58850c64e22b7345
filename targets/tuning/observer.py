"""Who is told how a tuning session goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .result import BatchReport, TuningResult
from .scheduler import Scheduler
from .search import TaskSearch


class Observer(Protocol):
    """Is told how a session goes on."""

    def started(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        """The searches, which change from now on."""

    def batch(self, search: TaskSearch, report: BatchReport) -> None:
        """A batch was measured."""

    def say(self, message: str) -> None:
        """Something that the user should know."""

    def finished(self, result: TuningResult) -> None:
        """The end."""


class Silent:
    """An `Observer` that shows nothing."""

    def started(self, searches: Sequence[TaskSearch], scheduler: Scheduler) -> None:
        pass

    def batch(self, search: TaskSearch, report: BatchReport) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def finished(self, result: TuningResult) -> None:
        pass
