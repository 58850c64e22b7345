"""Tells which pass is about to run."""

from __future__ import annotations

from collections.abc import Callable

from ...ir import Graph
from .base import Instrument, PassStep


class PassStages(Instrument):
    """Tell the name of each pass before it runs.

    Parameters
    ----------
    begin
        Told for example ``"pass fuse (3 of 9)"``.
    """

    def __init__(self, begin: Callable[[str], None]) -> None:
        self._begin = begin

    def before(self, step: PassStep, graph: Graph) -> None:
        self._begin(f"pass {step.one.name} ({step.index + 1} of {step.count})")
