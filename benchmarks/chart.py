"""A chart of latencies relative to Tersor's: one row per model, one mark per runtime; and figures in files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Record, medians
from benchmarks.tables import RUNTIMES, TERSOR
from tersor.ir.foreign import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct for all common kinds of colour blindness; the shapes tell them apart in grey.
MARKS = {
    "torch": ("PyTorch eager", "#000000", "o"),
    "torch-compile": ("torch.compile", "#56B4E9", "v"),
    "onnxruntime": ("ONNX Runtime", "#E69F00", "s"),
    "openvino": ("OpenVINO", "#0072B2", "D"),
    "ncnn": ("ncnn", "#CC79A7", "^"),
}
FASTER, SLOWER, GREY = "#009E73", "#D55E00", "#444444"
FINE_TICKS = (0.7, 0.8, 0.9, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5)
COARSE_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
WIDE = 6  # ratio of the ends of the axis from which ticks are coarse
ROW_INCHES = 0.42
MARGIN = 1.12  # of the axis beyond the outermost marks


@contextlib.contextmanager
def new_figure(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure, which is written when the block ends: the same file, byte for byte, for the same drawing.

    Parameters
    ----------
    path
        The file to write; the suffix tells the format (.svg, .png, .pdf).
    inches
        Width and height.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(
        {"svg.hashsalt": "tersor", "svg.fonttype": "path", "font.size": 10, "font.family": "DejaVu Sans"}
    ):
        figure = pyplot.figure(figsize=inches, layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def draw(content: Record, path: Path) -> None:
    """Draw a record's latency ratios.

    Parameters
    ----------
    content
        As `benchmarks.results.record` returns it, with Tersor among the runners.
    path
        See `new_figure`.
    """
    models = content["models"]
    ratios = {model["model"]: _ratios(model) for model in models}
    every = [1.0, *(ratio for row in ratios.values() for ratio in row.values())]
    with new_figure(path, (9, 1.9 + ROW_INCHES * len(models))) as figure:
        axes = figure.subplots()
        for row, model in enumerate(models):
            _draw_row(axes, row, ratios[model["model"]], model["best_runtime_over_tersor"])
        axes.axvline(1.0, color=GREY, linewidth=1.5, zorder=1)
        axes.axvspan(min(every) / MARGIN, 1.0, color=SLOWER, alpha=0.07, linewidth=0, zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(min(every) / MARGIN, max(every) * MARGIN)
        _set_ticks(axes, *axes.get_xlim())
        labels = [f"{model['model']}  ({medians(model)[TERSOR] * 1e3:.3g} ms)" for model in models]
        axes.set_yticks(range(len(models)), labels)
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.set_xlabel("their latency / Tersor's: right of 1, Tersor is faster (log scale)")
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.annotate(
            "best", (1.0, 1.0), xycoords="axes fraction", xytext=(6, 2), textcoords="offset points", color=GREY
        )
        figure.suptitle(_title(content), x=0.01, ha="left", fontsize=11)
        _add_legend(figure, axes, ratios)


def _draw_row(axes: Axes, row: int, ratios: Mapping[str, float], best: float | None) -> None:
    axes.plot([min(1.0, *ratios.values()), max(ratios.values())], [row, row], color="#bbbbbb", linewidth=1, zorder=2)
    for runner, ratio in ratios.items():
        _, colour, shape = MARKS[runner]
        axes.plot(ratio, row, shape, color=colour, markersize=8, markeredgecolor="white", markeredgewidth=0.8, zorder=3)
    if best is not None:
        axes.annotate(
            f"{best:.2f}",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            color=FASTER if best >= 1 else SLOWER,
        )


def _set_ticks(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    ticks = COARSE_TICKS if high / low > WIDE else FINE_TICKS
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}x" for tick in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _add_legend(figure: Figure, axes: Axes, ratios: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib.lines import Line2D

    present = [mark for runner, mark in MARKS.items() if any(runner in row for row in ratios.values())]
    handles = [
        Line2D([], [], linestyle="", marker=shape, color=colour, markersize=8, markeredgecolor="white", label=label)
        for label, colour, shape in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handletextpad=0.2)


def _title(content: Record) -> str:
    present = {runner for model in content["models"] for runner in medians(model)}
    names = ", ".join(MARKS[runner][0] for runner in RUNTIMES if runner in present)
    machine = content["machine"]
    return (
        f"How many times longer than Tersor the others take (best: the fastest of {names})\n"
        f"{machine['processor']}, {content['threads']} threads, batch {content['batch']}, "
        f"{content['precision']}, medians"
    )


def _ratios(model: Mapping[str, Json]) -> dict[str, float]:
    times = medians(model)
    return {runner: times[runner] / times[TERSOR] for runner in MARKS if runner in times}
