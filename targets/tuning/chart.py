"""The convergence chart: the model's latency over the seconds of tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...ir import TersorError
from ...ir.files import replacing
from .result import Point


def draw(history: Sequence[Point], path: Path, title: str = "") -> None:
    """Draw a session's history.

    Parameters
    ----------
    history
        From `TuningResult.history`.
    path
        The file to write: ``.svg``, ``.png`` or ``.pdf``.
    title
        Above the chart, for example the model's name.

    Raises
    ------
    TersorError
        When matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TersorError("the chart needs matplotlib, which is not installed: pip install matplotlib") from error
    figure = Figure(figsize=(7.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    seconds = [point.seconds for point in history]
    latency = [point.latency * 1e3 for point in history]
    axes.step(seconds, latency, where="post", color="#1f6f8b", linewidth=1.8)
    axes.plot(seconds[-1], latency[-1], "o", color="#1f6f8b")
    axes.annotate(
        f"{latency[-1]:.3f} ms\n{history[-1].trials} trials",
        (seconds[-1], latency[-1]),
        xytext=(-6, 10),
        textcoords="offset points",
        horizontalalignment="right",
    )
    axes.set_xlabel("seconds of tuning")
    axes.set_ylabel("sum of all kernels (ms)")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.margins(y=0.15)
    try:
        with replacing(path) as fresh:
            figure.savefig(fresh, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:  # matplotlib's, for another kind of file
        raise TersorError(f"{path}: the chart cannot be written ({error})") from error
