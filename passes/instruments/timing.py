"""A table of time, op counts and rewrites, pass by pass."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ...ir import Graph
from ..report import Report
from .base import Instrument


class Timing(Instrument):
    """Print a table when the run is over.

    Parameters
    ----------
    console
        Where to print; the standard error stream if omitted.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(stderr=True)

    def end(self, graph: Graph, report: Report) -> None:
        table = Table("pass", "changed", title=f"{report.seconds * 1e3:.1f} ms in {len(report.records)} passes")
        for heading in ("ms", "ops", "rewrites", "refused"):
            table.add_column(heading, justify="right")
        for record in report.records:
            table.add_row(
                record.text,
                "yes" if record.changed else "no",
                f"{record.seconds * 1e3:.2f}",
                f"{record.ops_before} -> {record.ops_after}",
                str(len(record.applied)),
                str(len(record.refused)),
            )
        self.console.print(table)
