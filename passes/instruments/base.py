"""What an instrument is: hooks around every pass of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...ir import Graph, TersorError
from ..base import Pass
from ..pipeline import Pipeline
from ..report import PassRecord, Report


class CheckFailure(TersorError):
    """Raised by an instrument's ``after`` when what the pass left behind is wrong."""


@dataclass(frozen=True)
class PassStep:
    """One pass of a run.

    Attributes
    ----------
    one
        The pass.
    index, count
        Its place, from 0, among ``count`` passes.
    remaining
        This pass and all after it.
    rewrites_left
        Rewrites that the bisect limit still allows before this pass, or None without a limit.
    """

    one: Pass
    index: int
    count: int
    remaining: Pipeline
    rewrites_left: int | None = None


class Instrument:
    """Base of the instruments; every hook does nothing by default. Instruments look, they never change the graph."""

    def begin(self, graph: Graph, pipeline: Pipeline) -> None:
        """Called once, before the first pass."""

    def before(self, step: PassStep, graph: Graph) -> None:
        """Called before each pass."""

    def progress(self, step: PassStep, text: str) -> None:
        """Called now and then by passes that take long; the text says what is left."""

    def after(self, step: PassStep, graph: Graph, record: PassRecord) -> None:
        """Called after each pass that did not raise; raises CheckFailure if the result is wrong."""

    def failed(self, step: PassStep, message: str, instruments: Sequence[Instrument]) -> str:
        """Called when a pass raised or a check failed; returns a line to add to the error, or ``""``."""
        return ""

    def end(self, graph: Graph, report: Report) -> None:
        """Called once, after the last pass."""

    def reproduce(self, directory: Path) -> tuple[str, ...]:
        """Options of ``tersor opt`` that bring its check back; files that they need are left in ``directory``."""
        return ()
