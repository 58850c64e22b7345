"""Comparisons of latency for the terminal, no wider than 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from benchmarks.harness import Comparison, Row
from benchmarks.peers import Precision
from tersor.ir.foreign import Instance

TERSOR = "tersor"
RUNTIMES = ("onnxruntime", "openvino", "ncnn")  # the fastest of these is what a deployed model is compared with
# Largest difference to PyTorch in float32, relative to the output's scale.
AGREEMENT = {Precision.FLOAT32: 1e-4, Precision.BF16: 2e-2, Precision.INT8: 5e-2}


def new_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]] = (),
    *,
    text_columns: int = 1,
    **options: Instance,
) -> Table:
    """A table whose first columns are texts, on the left, and all others numbers; ``options`` are those of rich.

    Where a terminal is narrow, cells take several lines, and nothing of them is left out.
    """
    view = Table(title=title, title_justify="left", **options)
    for index, column in enumerate(columns):
        view.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        view.add_row(*row)
    return view


def table(comparison: Comparison) -> Table:
    """Lay one comparison out."""
    title = f"{comparison.model}, batch {comparison.batch}, {comparison.precision}, {comparison.threads} thread(s)"
    view = new_table(title, ("runner", "median ms", "25-75 %", "x fastest", "differs by", "build s"))
    fastest = min(row.latency.median for row in comparison.rows)
    for row in comparison.rows:
        latency = row.latency
        agrees = row.difference <= AGREEMENT[comparison.precision]
        view.add_row(
            row.runner,
            milliseconds(latency.median),
            f"{milliseconds(latency.lower_quartile)}-{milliseconds(latency.upper_quartile)}",
            f"{latency.median / fastest:.2f}",
            f"{row.difference:.1e}" if agrees else f"[bold red]{row.difference:.1e}[/]",
            f"{row.build_seconds:.1f}",
            style="bold" if row.runner == TERSOR else "",
        )
    return view


def disagreeing(comparison: Comparison) -> list[Row]:
    """The rows that are too far from the reference for a benchmark to count.

    In float32 that is whoever is beyond `AGREEMENT`. In fewer bits rounding alone brings some networks beyond it,
    whoever computes, so there it is Tersor if it is beyond it and farther away than every other runner.
    """
    beyond = [row for row in comparison.rows if not row.difference <= AGREEMENT[comparison.precision]]
    if comparison.precision == Precision.FLOAT32:
        return beyond
    own = [row for row in beyond if row.runner == TERSOR]
    others = [row.difference for row in comparison.rows if row.runner != TERSOR]
    return [row for row in own if not any(row.difference <= difference for difference in others)]


def summary(comparisons: Sequence[Comparison]) -> Table:
    """Lay out how many times faster Tersor is on each model; above 1 means that Tersor is faster."""
    rows = [
        (
            one.model,
            milliseconds(one.median(TERSOR)),
            times(one.speedup(TERSOR, over=("torch",))),
            times(one.speedup(TERSOR, over=RUNTIMES)),
            one.fastest(RUNTIMES) or "-",
        )
        for one in comparisons
    ]
    columns = ("model", "tersor ms", "PyTorch eager", "best runtime", "which is")
    return new_table("Their latency over Tersor's: above 1, Tersor is faster", columns, rows)


def milliseconds(seconds: float) -> str:
    """Milliseconds with about four significant digits: 1.234, 12.34, 123.4."""
    value = seconds * 1e3
    decimals = 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f}"


def times(ratio: float | None) -> str:
    """A ratio, or a dash where there is none."""
    return "-" if ratio is None else f"{ratio:.2f}"
