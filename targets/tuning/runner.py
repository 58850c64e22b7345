"""Runs candidates in a process of their own, so that one that crashes, hangs or eats all memory is a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from . import execution
from .candidate import Built, Lowering, lower_with
from .sandbox import RunResult, Sandbox, Setup
from .task import Task
from .timing import TimingPolicy


@dataclass(frozen=True)
class RunSettings:
    """How candidates are run.

    Attributes
    ----------
    policy
        How kernels are timed.
    timeout
        Seconds that one candidate may take, check and timing together.
    task_timeout
        Seconds that preparing a task may take: its reference outputs and its program.
    memory_bytes
        What the process may allocate for a task and its candidates; None: half of the machine's memory.
    lowering
        How a task's graph is lowered with an option.
    """

    policy: TimingPolicy = field(default_factory=TimingPolicy)
    timeout: float = 10.0
    task_timeout: float = 120.0
    memory_bytes: int | None = None
    lowering: Lowering = lower_with


class CandidateRunner(Protocol):
    """Runs compiled candidates."""

    def warm_up(self, task: Task | None = None) -> None:
        """Start the processes that are missing, and get ready for a task in the background; nothing is timed then."""

    def run(
        self, task: Task, candidates: Sequence[Built], incumbent: Built | None
    ) -> Iterator[tuple[Built, RunResult]]:
        """Check and time ``candidates`` of one task, each beside ``incumbent``.

        Yields each with its result, in any order; a caller that closes the iterator wants no more of them.
        """

    def close(self) -> None:
        """End all processes."""


class LocalRunner:
    """Runs candidates on this machine, one after the other, in a `Sandbox`."""

    def __init__(self, settings: RunSettings | None = None) -> None:
        self._settings = settings or RunSettings()
        self._sandbox = Sandbox(execution.__name__, self._settings.memory_bytes, self._settings.task_timeout)

    def warm_up(self, task: Task | None = None) -> None:
        """See `CandidateRunner.warm_up`."""
        self._sandbox.warm_up()
        if task is not None:
            self._sandbox.prepare(self._setup(task))

    def run(
        self, task: Task, candidates: Sequence[Built], incumbent: Built | None
    ) -> Iterator[tuple[Built, RunResult]]:
        """See `CandidateRunner.run`, and `Sandbox.run` for what it raises."""
        self._sandbox.wait_ready()
        setup = self._setup(task)
        policy, timeout = self._settings.policy, self._settings.timeout
        for candidate in candidates:
            yield candidate, self._sandbox.run(setup, execution.run, candidate, incumbent, policy, timeout=timeout)

    def close(self) -> None:
        """End the processes."""
        self._sandbox.close()

    def _setup(self, task: Task) -> Setup:
        return execution.prepare, (task, self._settings.lowering)
