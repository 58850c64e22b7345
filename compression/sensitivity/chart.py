"""Curves of all layers in one chart: settings from left to right, losses upward by decades."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...passes.sensitivity import LossCurve, LossPoint, ScannedAxis

_MARKED = 6  # curves that are named
_LOWEST, _HIGHEST = 1e-5, 1e3  # losses beyond are drawn on the borders
WIDTH, HEIGHT = 1040, 340  # in user units
LEFT, RIGHT, TOP, BOTTOM = 56, 300, 12, 30  # margins: numbers at the left, names at the right
_LINE = 16  # between names


@dataclass(frozen=True)
class DrawnCurve:
    """One layer.

    Attributes
    ----------
    name
        Of the curve.
    path
        Corners of the line, as SVG's ``points``.
    end, label
        Heights of its last point, and of its name.
    is_marked
        Whether it is among those that lose most, which are named.
    """

    name: str
    path: str
    end: float
    label: float
    is_marked: bool


@dataclass(frozen=True)
class CurvesChart:
    """What ``page.html`` draws of an axis.

    Attributes
    ----------
    title
        What is shown.
    columns
        Place and label of each setting.
    decades
        Height and label of each line across.
    curves
        All layers; those that are marked come last.
    """

    title: str
    columns: tuple[tuple[float, str], ...]
    decades: tuple[tuple[float, str], ...]
    curves: tuple[DrawnCurve, ...]

    @classmethod
    def of(cls, axis: ScannedAxis) -> CurvesChart:
        """The chart of an axis."""
        courses = {curve: _course(curve) for curve in axis.curves}
        scale = _Scale.of([point.loss for points in courses.values() for point in points])
        labels = list(dict.fromkeys(point.label for points in courses.values() for point in points))
        span = (WIDTH - LEFT - RIGHT) / max(1, len(labels) - 1)
        columns = {label: LEFT + index * span for index, label in enumerate(labels)}
        order = sorted(axis.curves, key=lambda curve: _weight(courses[curve]))
        ends = {curve: scale.height(courses[curve][-1].loss) for curve in order}
        marked = sorted(order[-_MARKED:], key=ends.__getitem__)
        names = dict(zip(marked, _apart([ends[curve] for curve in marked]), strict=True))

        def drawn(curve: LossCurve) -> DrawnCurve:
            corners = ((columns[point.label], scale.height(point.loss)) for point in courses[curve])
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
            return DrawnCurve(axis.title_of(curve), path, ends[curve], names.get(curve, 0.0), curve in names)

        return cls(
            f"{axis.name}: change of the outputs by {axis.title}",
            tuple((x, label) for label, x in columns.items()),
            tuple((scale.height(10.0**decade), f"{10.0**decade:g}") for decade in range(scale.low, scale.high + 1)),
            tuple(map(drawn, order)),
        )

    @property
    def right(self) -> float:
        """Where the last column stands."""
        return max(x for x, _ in self.columns)


@dataclass(frozen=True)
class _Scale:
    """Heights of losses, by whole decades."""

    low: int
    high: int

    @classmethod
    def of(cls, losses: Sequence[float]) -> _Scale:
        inside = [loss for loss in losses if _LOWEST <= loss <= _HIGHEST] or [0.1, 1.0]
        low = math.floor(math.log10(min(inside)))
        return cls(low, max(low + 1, math.ceil(math.log10(max(inside)))))

    def height(self, loss: float) -> float:
        decade = min(float(self.high), max(float(self.low), _decade(loss)))
        return TOP + (self.high - decade) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _course(curve: LossCurve) -> tuple[LossPoint, ...]:
    """The points up to where settings turn back: what stands behind is of another kind, as an input's bits are."""
    points = curve.points
    steps = [after.value - before.value for before, after in pairwise(points)]
    for index, step in enumerate(steps):
        if step * steps[0] < 0:
            return points[: index + 1]
    return points


def _decade(loss: float) -> float:
    return math.log10(min(_HIGHEST, max(_LOWEST, loss)))


def _weight(points: Sequence[LossPoint]) -> float:
    """How much a layer loses over all settings."""
    return math.fsum(_decade(point.loss) for point in points)


def _apart(heights: Sequence[float]) -> list[float]:
    """The same heights, from the top, moved down where names would lie on each other, and up again at the bottom."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _LINE) if placed else height)
    lowest = float(HEIGHT - BOTTOM)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], lowest)
        lowest = placed[index] - _LINE
    return placed
