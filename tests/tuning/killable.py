"""Sessions of `tersor tune` that are killed: a process that forks them, kills each at a random moment, and tells.

Run as ``python -c "from tersor.tests.tuning.killable import main; main()" LOG_DIR KILLS``; prints one JSON line a
session. Everything is that of the command but for the measurer, whose times are a formula: records go through the
session and the log, one synced line each. What is forked has everything imported and has run nothing yet.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import xgboost  # noqa: F401 (imported once, before the sessions are forked)
from torch import nn

import tersor.cli.main
from tersor.targets.templates.option import Option
from tersor.targets.tuning import driver
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.task import Task
from tersor.tests.tuning.fakes import FakeMeasurer

MOST_MEASURED = 40  # before the kill
MOST_DELAY = 5e-3  # seconds from the last acknowledgement that is waited for to the kill: a few measurements

_session = 0  # number of the session that this process runs


def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A network that is new to each session, so that none finds everything measured."""
    widths = [32 + 8 * _session + 64 * layer for layer in range(5)]
    layers = [nn.Conv2d(inputs, outputs, 3) for inputs, outputs in pairwise(widths)]
    return nn.Sequential(*layers), (torch.ones(1, widths[0], 24, 24),)


class Acknowledging(FakeMeasurer):
    """Names each outcome, and writes its name to a pipe when the session has taken it: from then on it must be kept."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self._pipe = pipe

    def outcomes(
        self, task: Task, options: Sequence[Option], incumbent: Option | None, seconds: float
    ) -> Generator[Outcome, None, None]:
        for outcome in super().outcomes(task, options, incumbent, seconds):
            name = f"{_session}/{len(self.measured)}"
            yield replace(outcome, detail=name)
            os.write(self._pipe, f"{name}\n".encode())


def run_session(number: int, log_dir: str, pipe: int) -> None:
    """Tune until the end, or until killed."""
    global _session
    _session = number
    driver.LocalMeasurer = lambda: Acknowledging(pipe)  # type: ignore[assignment, misc]
    tersor.cli.main.main(["tune", f"{__name__}:make", "--no-shipped", "--log-dir", log_dir])


def kill_one(number: int, log_dir: str, wait_for: int, delay: float) -> dict[str, object]:
    """Fork a session and kill it; what it acknowledged by then, and the signal that ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            run_session(number, log_dir, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        names = [name for _, name in zip(range(wait_for), pipe, strict=False)]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        names += pipe
    _, status = os.waitpid(child, 0)
    return {"names": [name.strip() for name in names], "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}


def main() -> None:
    """Entry point."""
    torch.set_num_threads(1)  # a forked process has none of the others
    generator = random.Random(0)
    for number in range(int(sys.argv[2])):
        result = kill_one(number, sys.argv[1], generator.randint(1, MOST_MEASURED), generator.uniform(0, MOST_DELAY))
        print(json.dumps(result), flush=True)
