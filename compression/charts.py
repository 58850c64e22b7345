"""Charts of the report: a value for each step, as bars from zero or as points on a scale around the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """What ``page.html`` draws.

    Attributes
    ----------
    title
        What is shown, with its unit.
    values
        One for each step, from the top; None where it is not known.
    text
        A value as it is written beside its bar or point.
    is_scale
        Whether points on a scale that spans the values are drawn, for differences that bars from zero would hide.
    limit
        Drawn as a line on a scale: what the values should not fall below.
    """

    title: str
    values: tuple[float | None, ...]
    text: Callable[[float], str] = "{:.4g}".format
    is_scale: bool = False
    limit: float | None = None

    def place(self, value: float) -> float:
        """Where ``value`` lies between the left end, 0, and the right end, 1."""
        known = [one for one in (*self.values, self.limit) if one is not None]
        low, high = min(known, default=0.0), max(known, default=1.0)
        if not self.is_scale:
            return value / (max(high, 0.0) or 1.0)
        margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        return (value - low + margin) / (high - low + 2 * margin)
