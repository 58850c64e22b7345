"""Compare the graph before and after each pass by the reference interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...ir import Graph, check_inputs
from ...ir.files import replacing
from ...ir.weights import write_tensors
from ..numeric import difference, seeded_inputs, step_rounding
from ..pipeline import Pipeline
from ..report import PassRecord
from .base import CheckFailure, Instrument, PassStep

_ROUNDING = 4.0  # passes may be off so many times what rounding costs the graph itself


class CheckEach(Instrument):
    """Run the graph before and after each pass, and compare at the tolerance that the pass declares.

    Where the graph that the pipeline begins with rounds to integers, what `step_rounding` costs it is tolerated too.

    Parameters
    ----------
    inputs
        One tensor per graph input; seeded random ones if omitted.
    tolerance
        Instead of the passes' own, relative to the largest magnitude of an output.
    """

    def __init__(self, inputs: Sequence[torch.Tensor] | None = None, *, tolerance: float | None = None) -> None:
        self.given = None if inputs is None else tuple(inputs)
        self.tolerance = tolerance
        self._names: tuple[str, ...] = ()
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._reference: tuple[torch.Tensor, ...] = ()
        self._least = 0.0

    def begin(self, graph: Graph, pipeline: Pipeline) -> None:
        self._inputs = self.given if self.given is not None else seeded_inputs(graph)
        check_inputs(graph, self._inputs)
        self._names = tuple(value.name for value in graph.user_inputs)
        self._reference = graph.evaluate(*self._inputs)
        self._least = _ROUNDING * step_rounding(graph, self._inputs)

    def after(self, step: PassStep, graph: Graph, record: PassRecord) -> None:
        if not record.changed:
            return
        tolerance = max(step.one.tolerance, self._least) if self.tolerance is None else self.tolerance
        problem, outputs = difference(graph, self._inputs, self._reference, tolerance)
        if problem:
            raise CheckFailure(problem)
        self._reference = outputs

    def reproduce(self, directory: Path) -> tuple[str, ...]:
        options = ["--check-each"]
        if self.tolerance is not None:
            options += ["--tolerance", repr(self.tolerance)]
        if self.given is not None:
            path = directory / "inputs.safetensors"
            named = zip(self._names, self.given, strict=True)
            with replacing(path) as fresh:
                write_tensors(fresh, {name: tensor.clone().contiguous() for name, tensor in named})
            options += ["--inputs", str(path)]
        return tuple(options)
