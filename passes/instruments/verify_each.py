"""Verify the graph after each pass."""

from __future__ import annotations

from pathlib import Path

from ...ir import Graph, IRError, verify, weights_loaded
from ..pipeline import Pipeline
from ..report import PassRecord
from .base import CheckFailure, Instrument, PassStep


class VerifyEach(Instrument):
    """Check that each pass leaves a well-formed graph, and tells the truth about whether it changed it."""

    def __init__(self) -> None:
        self._text = ""
        self._weights = True

    def begin(self, graph: Graph, pipeline: Pipeline) -> None:
        self._weights = weights_loaded(graph)

    def before(self, step: PassStep, graph: Graph) -> None:
        self._text = str(graph)

    def after(self, step: PassStep, graph: Graph, record: PassRecord) -> None:
        try:
            verify(graph, weights=self._weights)
        except IRError as error:
            raise CheckFailure(f"it left a malformed graph: {error}") from error
        if record.changed != (str(graph) != self._text):
            claim, truth = ("changed", "did not") if record.changed else ("unchanged", "did")
            raise CheckFailure(f"it reports the IR as {claim}, but the text {truth} change")

    def reproduce(self, directory: Path) -> tuple[str, ...]:
        return ("--verify-each",)
