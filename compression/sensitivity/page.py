"""A scan as one page of HTML that needs no other file: for each axis, curves of all layers and a table of losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ...ir.files import write_text
from ...passes.sensitivity import LossPoint, SensitivityScan
from ..page import template
from .chart import CurvesChart

_COLD, _HOT = -4.0, 0.0  # decades of the error between which cells are shaded


def write_page(scan: SensitivityScan, path: Path) -> Path:
    """Write the page; raises TersorError where that is not possible."""
    write_text(path, render(scan))
    return path


def render(scan: SensitivityScan) -> str:
    """The page as text."""
    charts = [CurvesChart.of(axis) for axis in scan.axes]
    return template("sensitivity/page.html").render(scan=scan, charts=charts, cell=_Cell)


@dataclass(frozen=True)
class _Cell:
    """A point in the table."""

    point: LossPoint

    @property
    def heat(self) -> float:
        """From 0 for errors that do not matter to 1 for outputs that are all error."""
        loss = self.point.loss
        decade = math.log10(loss) if 0 < loss < math.inf else (_COLD if not loss else _HOT)
        return min(1.0, max(0.0, (decade - _COLD) / (_HOT - _COLD)))

    @property
    def text(self) -> str:
        return "not finite" if self.point.error is None else f"{self.point.error:.2g}"

    @property
    def hint(self) -> str:
        """What the setting comes to, and the error in decibels."""
        return f"{self.point.detail}: {self.point.decibels:.1f} dB"
