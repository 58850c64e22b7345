"""When a pass fails: the graph before it, with the command that fails the same way."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ...ir import IR_VERSION, Graph, save_ir
from ...ir.files import make_folder, write_text
from ..registry import find_pass
from .base import Instrument, PassStep


class Reproducer(Instrument):
    """Write ``<pass>.ir`` and ``<pass>.safetensors`` into a folder when a pass fails.

    A comment at the head of the IR file gives the error and the ``tersor opt`` command.

    Parameters
    ----------
    directory
        Made when it is needed.
    options
        Of ``tersor opt``, for what passes were given besides the graph.
    """

    def __init__(self, directory: str | Path, options: Sequence[str] = ()) -> None:
        self.directory = Path(directory)
        self._options = tuple(options)
        self._graph: Graph | None = None

    def before(self, step: PassStep, graph: Graph) -> None:
        self._graph = graph.clone()

    def failed(self, step: PassStep, message: str, instruments: Sequence[Instrument]) -> str:
        graph = self._graph
        if graph is None:
            return ""
        path = self.directory / f"{step.one.name}.ir"
        make_folder(self.directory)
        if len(graph.weights):
            graph.forget_unused_weights()
            save_ir(graph, path)
        options = [*self._options]
        options += [option for instrument in instruments for option in instrument.reproduce(self.directory)]
        if step.rewrites_left is not None:
            options += ["--bisect-limit", str(step.rewrites_left)]
        built_in = __package__.rpartition(".")[0]
        for plugin in sorted({find_pass(one.name).__module__ for one in step.remaining.passes}):
            if not plugin.startswith(f"{built_in}."):
                options += ["--plugin", plugin]
        command = shlex.join(["tersor", "opt", str(path), "-p", str(step.remaining), *options])
        header = [
            f"# tersor ir {IR_VERSION}",
            "# Reproducer. This command fails the same way:",
            f"#   {command}",
            "# The error:",
            *(f"#   {line}" for line in message.splitlines()),
        ]
        write_text(path, "\n".join([*header, str(graph)]))
        return f"reproducer written to {path}"
