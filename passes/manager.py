"""Runs pipelines: on a clone, with instruments around every pass, and with a report of what each pass did."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ..ir import Graph, IRError, RewriteLog, TersorError, verify, weights_loaded
from ..ir.foreign import UserObject
from .base import Latency, Machine, Pass, PassContext, PassError
from .calibration import read_calibration
from .instruments.base import CheckFailure, Instrument, PassStep
from .pipeline import Pipeline, as_pipeline, print_pass
from .report import PassRecord, Report


@dataclass(frozen=True)
class PassOutcome:
    """The optimized graph and the report."""

    graph: Graph
    report: Report


@dataclass(frozen=True)
class PassManager:
    """A pipeline with instruments; holds no state between runs.

    Attributes
    ----------
    pipeline
        The passes to run.
    instruments
        Called around every pass, in this order.
    bisect_limit
        Number of rewrites allowed in the whole run, or None for all of them (as LLVM's ``-opt-bisect-limit``).
    """

    pipeline: Pipeline
    instruments: tuple[Instrument, ...] = ()
    bisect_limit: int | None = None

    def __post_init__(self) -> None:
        if self.bisect_limit is not None and self.bisect_limit < 0:
            raise TersorError(f"the bisect limit must be 0 or more, not {self.bisect_limit}")

    def run(
        self,
        graph: Graph,
        *,
        target: Machine | None = None,
        calibration: UserObject = None,
        latency: Latency | None = None,
        score: Callable[[Graph], float] | None = None,
    ) -> PassOutcome:
        """Run all passes on a clone of ``graph``.

        Raises
        ------
        IRError
            When ``graph`` is malformed to begin with.
        PassError
            When a pass raises, or an instrument's check of its result fails.
        """
        loaded = weights_loaded(graph)  # once: passes add weights to graphs that were read from text alone too
        verify(graph, weights=loaded)
        graph = graph.clone()
        check_needs(self.pipeline, data=calibration is not None, score=score is not None)
        batches = read_calibration(calibration, graph)
        context = PassContext(target, batches, RewriteLog(limit=self.bisect_limit), latency, score)
        for instrument in self.instruments:
            instrument.begin(graph, self.pipeline)
        records: list[PassRecord] = []
        waiting = self.pipeline.passes
        while waiting:
            limit = None if self.bisect_limit is None else self.bisect_limit - len(context.log.applied)
            step = PassStep(waiting[0], len(records), len(records) + len(waiting), Pipeline(waiting), limit)
            record, then = self._run_pass(step, graph, context)
            records.append(record)
            waiting = (*Pipeline(then).passes, *waiting[1:])
        try:
            verify(graph, weights=loaded)
        except IRError as error:
            raise PassError(
                f"the pipeline left a malformed graph ({error}); verify each pass to see which one it was",
                context.log.applied,
            ) from error
        graph.forget_unused_weights()
        report = Report(tuple(records))
        for instrument in self.instruments:
            instrument.end(graph, report)
        return PassOutcome(graph, report)

    def _run_pass(self, step: PassStep, graph: Graph, context: PassContext) -> tuple[PassRecord, tuple[Pass, ...]]:
        """Run one pass; returns what it did, and the passes that it asks to follow."""
        for instrument in self.instruments:
            instrument.before(step, graph)
        one, log = step.one, context.log
        applied, refused, notes, ops = len(log.applied), len(log.refused), len(context.notes), len(graph)
        judged = len(context.verdicts)

        def progress(text: str) -> None:
            for instrument in self.instruments:
                instrument.progress(step, text)

        context.progress = progress
        start = time.perf_counter()
        try:
            result = one.run(graph, context)
        except Exception as error:  # whatever a pass raises becomes one error that names the pass
            self._fail(step, error, log)
        record = PassRecord(
            one.name,
            print_pass(one),
            result.changed,
            time.perf_counter() - start,
            ops,
            len(graph),
            tuple(log.applied[applied:]),
            tuple(dict.fromkeys(log.refused[refused:])),
            (*result.notes, *context.notes[notes:]),
            tuple(context.verdicts[judged:]),
            result.staircases,
            result.layers,
        )
        for instrument in self.instruments:
            try:
                instrument.after(step, graph, record)
            except CheckFailure as error:
                self._fail(step, error, log)
        return record, result.then

    def _fail(self, step: PassStep, error: Exception, log: RewriteLog) -> NoReturn:
        """Raise the PassError for ``error``, with what instruments have to say about it."""
        reason = str(error) if isinstance(error, TersorError) else f"{type(error).__name__}: {error}"
        message = f"pass {step.one.name!r} failed: {reason}"
        notes = [instrument.failed(step, message, self.instruments) for instrument in self.instruments]
        raise PassError("; ".join([message, *filter(None, notes)]), log.applied) from error


def check_needs(pipeline: Pipeline, *, data: bool, score: bool) -> None:
    """Raise TersorError where a pass needs data or a score that there is not: before any work, not after it."""
    for one in pipeline.passes:
        if one.needs_data and not data:
            raise TersorError(
                f"pass {one.name!r} needs calibration data: give at least one batch of inputs (calibration=..., or "
                "--data)"
            )
        if one.needs_score and not score:
            raise TersorError(
                f"pass {one.name!r} needs a score of the model: give a function that returns one (evaluate=..., or "
                "--evaluate)"
            )


def run_passes(
    graph: Graph,
    pipeline: str | Pipeline | Sequence[Pass],
    *,
    target: Machine | None = None,
    calibration: UserObject = None,
    latency: Latency | None = None,
    score: Callable[[Graph], float] | None = None,
    instruments: Sequence[Instrument] = (),
    bisect_limit: int | None = None,
) -> Graph:
    """Optimize a graph; the graph that is passed in is never changed.

    Parameters
    ----------
    graph
        The graph to start from.
    pipeline
        Text such as ``"fold-batchnorm,fuse"`` or ``"O3"``, a `Pipeline`, or a sequence of passes.
    target
        The machine to optimize for, for passes that ask.
    calibration
        Batches of inputs, for passes that ask, in any form that `tersor.passes.calibration` takes.
    latency
        Measures on the target, for passes that decide by time.
    score
        The user's number for a graph, larger for a better one, for passes that decide by it.
    instruments
        Checks, prints, dumps and so on around every pass (`tersor.passes.instruments`).
    bisect_limit
        Stop after this many rewrites.

    Raises
    ------
    TersorError
        When the pipeline cannot be read, the graph is malformed, or a pass fails.

    See Also
    --------
    PassManager : returns a report too.
    """
    manager = PassManager(as_pipeline(pipeline), tuple(instruments), bisect_limit)
    return manager.run(graph, target=target, calibration=calibration, latency=latency, score=score).graph
