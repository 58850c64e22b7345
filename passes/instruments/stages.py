"""Tells which pass is about to run, and what is left of one that takes long."""

from __future__ import annotations

from collections.abc import Callable

from ...ir import Graph
from .base import Instrument, PassStep


class PassStages(Instrument):
    """Tell the name of each pass before it runs.

    Parameters
    ----------
    begin
        Told for example ``"pass fuse (3 of 9)"`` or ``"pass gptq (7 of 9): layers: 12 of 50, 40 s left"``.
    """

    def __init__(self, begin: Callable[[str], None]) -> None:
        self._begin = begin

    def before(self, step: PassStep, graph: Graph) -> None:
        self._begin(_stage(step))

    def progress(self, step: PassStep, text: str) -> None:
        self._begin(f"{_stage(step)}: {text}")


def _stage(step: PassStep) -> str:
    return f"pass {step.one.name} ({step.index + 1} of {step.count})"
