"""Print the IR around passes."""

from __future__ import annotations

import sys
from enum import Enum

from ...ir import Graph
from ..report import PassRecord
from .base import Instrument, PassStep


class When(Enum):
    """When `PrintIR` prints."""

    BEFORE_ALL = "before-all"
    AFTER_ALL = "after-all"
    ON_CHANGE = "on-change"


class PrintIR(Instrument):
    """Print the IR text on stderr before each pass, after each pass, or after each pass that changed it.

    Parameters
    ----------
    when
        When to print.
    """

    def __init__(self, when: When = When.AFTER_ALL) -> None:
        self.when = when

    def before(self, step: PassStep, graph: Graph) -> None:
        if self.when is When.BEFORE_ALL:
            self._print("before", step, graph)

    def after(self, step: PassStep, graph: Graph, record: PassRecord) -> None:
        if self.when is When.AFTER_ALL or (self.when is When.ON_CHANGE and record.changed):
            self._print("after", step, graph)

    def _print(self, side: str, step: PassStep, graph: Graph) -> None:
        banner = f"# ---- {side} {step.one.name} ({step.index + 1} of {step.count}) ----"
        print(f"{banner}\n{graph}", file=sys.stderr)
