"""What is measured of a model after each step: time beside the original's, output error, and the user's score."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from ..evaluation import Evaluation, compiled_model, interpreted_model
from ..ir import Graph
from ..passes.numeric import seeded_inputs
from ..targets import Executable
from ..targets.tuning.timing import Run, TimingPolicy, measure
from .result import PairTiming

BATCHES = 8  # of the data, on which outputs are compared at most
# The figures of the report: no early end, blocks that outlast a time slice of the scheduler, and time to calm down.
POLICY = TimingPolicy(block_seconds=4e-3, min_blocks=20, max_blocks=120, max_seconds=3.0, cut=math.inf)


@dataclass(frozen=True)
class Figures:
    """See `tersor.compression.result.Step`."""

    latency: PairTiming | None
    error: float
    score: float | None


class Judge:
    """Measures models against the original.

    Parameters
    ----------
    graph
        The original.
    data
        Batches of its inputs; seeded random ones if None.
    evaluation
        Scores models, or None.
    runs_here
        Whether the target's code runs on this machine; if not, nothing is timed, and graphs are interpreted.
    """

    def __init__(
        self,
        graph: Graph,
        data: Iterable[Sequence[torch.Tensor]] | None,
        evaluation: Evaluation | None,
        runs_here: bool,
    ) -> None:
        self._evaluation = evaluation
        self._runs_here = runs_here
        batches = [seeded_inputs(graph)] if data is None else itertools.islice(data, BATCHES)
        self._expected = [(tuple(batch), _floats(graph.evaluate(*batch))) for batch in batches]
        self._original: Run | None = None

    def original(self, executable: Executable) -> Figures:
        """The figures of the original, compiled; must come first."""
        if not self._runs_here:
            return self._figures(executable, None)
        self._original = _caller(executable)
        timing = measure(self._original, None, POLICY)
        return self._figures(executable, PairTiming(timing.seconds, timing.seconds, timing.spread))

    def step(self, executable: Executable) -> Figures:
        """The figures of a model."""
        if self._original is None:
            return self._figures(executable, None)
        timing = measure(_caller(executable), self._original, POLICY)
        return self._figures(executable, PairTiming(timing.seconds, timing.baseline, timing.spread))

    def _figures(self, executable: Executable, latency: PairTiming | None) -> Figures:
        model = compiled_model(executable) if self._runs_here else interpreted_model(executable.graph)
        error = self._error(executable.flat if self._runs_here else executable.graph.evaluate)
        return Figures(latency, error, None if self._evaluation is None else self._evaluation(model))

    def _error(self, run: Callable[..., Sequence[torch.Tensor]]) -> float:
        noise = signal = 0.0
        for batch, expected in self._expected:
            actual = _floats(run(*batch))
            noise += sum(float((a - b).square().sum()) for a, b in zip(actual, expected, strict=True))
            signal += sum(float(one.square().sum()) for one in expected)
        return math.sqrt(noise / signal) if signal else math.sqrt(noise)


def _floats(outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(output.double() for output in outputs)


def _caller(executable: Executable) -> Run:
    inputs = executable.random_inputs()
    return lambda: executable(*inputs)
