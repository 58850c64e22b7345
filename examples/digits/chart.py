"""The chart of `curves`: wrong answers against operations, a line for each criterion, a column for each network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.chart import GREY, new_figure

from .curves import RANDOM, RECONSTRUCTED, STAGES, Curve, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, as in benchmarks/chart.py, and shapes that tell lines of one colour apart.
LINES = {
    "l1": ("#0072B2", "o"),
    "l2": ("#0072B2", "s"),
    "fpgm": ("#0072B2", "^"),
    "bn-gamma": ("#E69F00", "v"),
    "activation-mean": ("#CC79A7", "o"),
    "activation-zeros": ("#CC79A7", "s"),
    "taylor": ("#D55E00", "o"),
    "obd": ("#D55E00", "s"),
    "obs": ("#009E73", "s"),
    RECONSTRUCTED: ("#009E73", "o"),
    RANDOM: ("#000000", "x"),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)  # percent
LEAST = 0.0005  # of the answers wrong: none is drawn there
COLUMN_INCHES, ROW_INCHES = 5.0, 3.3


def draw(found: Sequence[Curves], path: Path) -> None:
    """Draw all networks, without training above and fine-tuned below; the range of random channels is shaded."""
    from matplotlib.lines import Line2D

    with new_figure(path, (COLUMN_INCHES * len(found), 1.2 + ROW_INCHES * len(STAGES))) as figure:
        grid = figure.subplots(len(STAGES), len(found), squeeze=False, sharex=True, sharey="row")
        for row, stage in zip(grid, STAGES, strict=True):
            for axes, one in zip(row, found, strict=True):
                _draw(axes, one, stage)
            row[0].set_ylabel("wrong answers, % (log scale)")
        for axes in grid[-1]:
            axes.set_xlabel("multiply-adds left")
        names = [curve.name for curve in found[0].curves] if found else []
        handles = [
            Line2D([], [], color=LINES[name][0], marker=LINES[name][1], markersize=5, label=name) for name in names
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(found), frameon=False)


def _draw(axes: Axes, curves: Curves, stage: str) -> None:
    from matplotlib.ticker import NullLocator

    for curve in curves.curves:
        _draw_line(axes, curve, stage)
    axes.axhline(_wrong(curves.exact), color=GREY, linewidth=1, linestyle=":")
    if stage == "fine-tuned":
        ratios = [*curves.scratch]
        axes.plot(ratios, [_wrong(curves.scratch[one]) for one in ratios], "*", color=GREY, markersize=11)
    axes.set_yscale("log")
    limits = axes.get_ylim()  # of what is drawn; ticks would widen them
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(limits)
    axes.set_title(f"{curves.network}, {stage}", fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.8, axis="y")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_line(axes: Axes, curve: Curve, stage: str) -> None:
    color, shape = LINES[curve.name]
    at = [sum(one.macs for one in changes) / len(changes) for changes in curve.changes]
    axes.plot(at, [_wrong(score) for score in curve.means(STAGES[stage])], color=color, marker=shape, markersize=4)
    if curve.name == RANDOM:
        spread = [[_wrong(STAGES[stage](one)) for one in changes] for changes in curve.changes]
        axes.fill_between(at, [*map(min, spread)], [*map(max, spread)], color=color, alpha=0.1, linewidth=0)


def _wrong(score: float) -> float:
    """Percent."""
    return 100 * max(LEAST, 1 - score)
