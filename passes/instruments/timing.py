"""Time, op counts and rewrites, pass by pass."""

from __future__ import annotations

import sys
from typing import TextIO

from ...ir import Graph
from ..report import Report
from .base import Instrument


class PrintTiming(Instrument):
    """Print what each pass took and did when the run is over.

    Parameters
    ----------
    file
        Where to print; the standard error stream if omitted.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file

    def end(self, graph: Graph, report: Report) -> None:
        print(f"{report.seconds * 1e3:.1f} ms in {len(report.records)} passes\n{report}", file=self.file or sys.stderr)
