"""Charts of the report as SVG: one row a step, either a bar from zero or a point on a scale around the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _ROW, _BAR = 520, 38, 12  # in user units
_VALUES = 84  # at the right, for the numbers
_LABEL_LETTERS = 78


@dataclass(frozen=True)
class ChartRow:
    """One step in a chart.

    Attributes
    ----------
    label
        Its name.
    value
        What is drawn, or None where it is not known.
    style
        ``"kept"``, ``"beyond"`` or empty.
    """

    label: str
    value: float | None
    style: str = ""


def bars(rows: Sequence[ChartRow], text: Callable[[float], str]) -> str:
    """Bars from zero.

    Parameters
    ----------
    rows
        Steps, from the top.
    text
        A value as it is written beside its bar.
    """
    top = max((row.value for row in rows if row.value is not None), default=0.0) or 1.0

    def draw(row: ChartRow, y: int) -> str:
        length = (row.value or 0.0) / top * (_WIDTH - _VALUES)
        return f'<rect class="bar {row.style}" x="0" y="{y}" width="{max(length, 1):.1f}" height="{_BAR}" rx="3"/>'

    return _chart(rows, text, draw)


def points(rows: Sequence[ChartRow], text: Callable[[float], str], limit: float | None = None) -> str:
    """Points on a scale that spans the values, for differences that bars from zero would hide.

    Parameters
    ----------
    limit
        Drawn as a line: what the values should not fall below.
    """
    values = [row.value for row in rows if row.value is not None]
    known = values if limit is None else [*values, limit]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return (value - low) / (high - low) * (_WIDTH - _VALUES)

    def draw(row: ChartRow, y: int) -> str:
        track = f'<rect class="track" x="0" y="{y + _BAR / 2 - 1}" width="{_WIDTH - _VALUES}" height="2" rx="1"/>'
        if row.value is None:
            return track
        return f'{track}<circle class="bar {row.style}" cx="{place(row.value):.1f}" cy="{y + _BAR / 2}" r="6"/>'

    line = ""
    if limit is not None:
        x, bottom = f"{place(limit):.1f}", len(rows) * _ROW + 4
        line = f'<line class="limit" x1="{x}" x2="{x}" y1="16" y2="{bottom}"/>'
        line += f'<text class="soft" x="{x}" y="{bottom + 13}" text-anchor="middle">limit {escape(text(limit))}</text>'
    return _chart(rows, text, draw, line, 18 if limit is not None else 0)


def _chart(
    rows: Sequence[ChartRow],
    text: Callable[[float], str],
    draw: Callable[[ChartRow, int], str],
    extra: str = "",
    extra_height: int = 0,
) -> str:
    parts = []
    for index, row in enumerate(rows):
        y = index * _ROW + 20
        strong = "strong" if row.style == "kept" else ""
        value = "-" if row.value is None else text(row.value)
        parts += [
            f'<text class="soft" x="0" y="{y - 6}">{escape(_shortened(row.label))}</text>',
            draw(row, y),
            f'<text class="{strong}" x="{_WIDTH}" y="{y + 10}" text-anchor="end">{escape(value)}</text>',
        ]
    height = len(rows) * _ROW + 4 + extra_height
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(parts)}{extra}</svg>'


def _shortened(label: str) -> str:
    return label if len(label) <= _LABEL_LETTERS else f"{label[: _LABEL_LETTERS - 1]}…"
