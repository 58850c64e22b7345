"""Numbered dumps: one IR file before the first pass and one after each."""

from __future__ import annotations

from pathlib import Path

from ...ir import Graph, save_ir
from ...ir.files import make_folder, write_text
from ..pipeline import Pipeline
from ..report import PassRecord
from .base import Instrument, PassStep


class DumpEach(Instrument):
    """Write ``00-input.ir``, ``01-canonicalize.ir`` and so on.

    Parameters
    ----------
    directory
        Made if it does not exist.
    weights
        Whether to write each graph's weights too (``.safetensors`` beside the text).
    """

    def __init__(self, directory: str | Path, *, weights: bool = False) -> None:
        self.directory = Path(directory)
        self.weights = weights

    def begin(self, graph: Graph, pipeline: Pipeline) -> None:
        make_folder(self.directory)
        self._dump("00-input", graph)

    def after(self, step: PassStep, graph: Graph, record: PassRecord) -> None:
        self._dump(f"{step.index + 1:02d}-{step.one.name}", graph)

    def _dump(self, stem: str, graph: Graph) -> None:
        path = self.directory / f"{stem}.ir"
        if self.weights:
            save_ir(graph, path)
        else:
            write_text(path, str(graph))
