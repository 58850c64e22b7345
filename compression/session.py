"""Runs a plan step by step; after each step there is a compiled model, judged, and on disk if a file was asked for."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ..compiler import load_choices
from ..evaluation import Evaluation, stored_bytes, weights_of
from ..ir import Graph, TersorError, fingerprint
from ..ir.files import put, scratch_folder, writing
from ..measuring import REQUIRED_PASSES, latency_of, runs_here, score_of
from ..passes import PassManager, PassOutcome, PassRecord, Pipeline, Report, parse_pipeline
from ..passes.calibration import Batches
from ..passes.instruments import PassStages
from ..targets import Executable, Target, compile_graph
from ..targets.codegen.kernel_cache import KernelCache
from ..targets.tuning.measured_latency import LEAST_NOISE
from .judge import Figures, Judge
from .machine import describe_machine, describe_versions
from .plan import StepPlan, only_narrows
from .result import Compressed, CompressError, End, Setting, Step, score_text

ORIGINAL = "original"
_FINISH = parse_pipeline(f"O3,{REQUIRED_PASSES}")  # before a model is compiled, whatever the pipeline says
_ROUNDING = 1e-9  # a drop of exactly what is allowed is allowed


class StepObserver:
    """Is told how it goes on; every method does nothing by default."""

    def begin(self, stage: str) -> None:
        """Some work begins that takes a while."""

    def finished(self, step: Step) -> None:
        """A step has ended: the original first."""


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes
    ----------
    graph
        The model, its weights loaded.
    plan
        The steps.
    target
        The machine; its cores are the threads that work is split for.
    threads
        Of one call, or None for all usable cores.
    data
        For passes that need some, and to compare outputs on.
    evaluation
        Scores models, or None.
    max_drop
        By how much the score may fall below the original's, or None for any.
    log_dir
        Tuning records on top of those that ship with Tersor.
    output
        Where to write the model that is kept, or None.
    """

    graph: Graph
    plan: StepPlan
    target: Target
    threads: int | None = None
    data: Batches | None = None
    evaluation: Evaluation | None = None
    max_drop: float | None = None
    log_dir: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class _Made:
    """A step with its program, and the file of it that is not yet in its place."""

    step: Step
    executable: Executable
    file: Path | None
    graph: Graph  # before what code generation needs


class Session:
    """One run of a job; holds what its steps share."""

    def __init__(self, job: Job, observer: StepObserver) -> None:
        self._job = job
        self._observer = observer
        self._began = datetime.datetime.now(datetime.UTC)
        self._latency = latency_of(job.plan.pipeline, job.target, job.log_dir, KernelCache.of_user())
        self._score = score_of(job.evaluation, job.target, job.log_dir, KernelCache.of_user())
        self._choices = load_choices(job.target, job.log_dir)
        self._judge = Judge(job.graph, job.data, job.evaluation, runs_here(job.target))
        self._steps: list[Step] = []
        self._records: tuple[PassRecord, ...] = ()

    def run(self) -> Compressed:
        """Make all steps, or as many as there can be.

        Raises
        ------
        TersorError
            When the original cannot be compiled or judged, or the first step fails.
        CompressError
            When a later step fails; the error holds what was made until then.
        """
        if self._job.output is None:
            return self._run(None)
        with ExitStack() as stack:
            with writing(self._job.output):
                folder = stack.enter_context(scratch_folder(beside=self._job.output))
            return self._run(folder)

    def _run(self, folder: Path | None) -> Compressed:
        job = self._job
        outcome = self._passes(job.plan.start, job.graph)
        best = made = self._made(ORIGINAL, outcome, self._judge.original, folder, time.perf_counter())
        self._trainable = made
        for number, pipeline in enumerate(job.plan.steps, start=1):
            started = time.perf_counter()
            try:
                before, outcome = outcome.graph, self._passes(pipeline, outcome.graph)
                if fingerprint(before) == fingerprint(outcome.graph):  # all rewrites were undone
                    made = self._unchanged(made, str(pipeline), outcome, started)
                else:
                    made = self._made(str(pipeline), outcome, self._judge.step, folder, started)
            except KeyboardInterrupt:
                if number == 1:
                    raise
                return self._result(best, End.INTERRUPTED, f"interrupted during {pipeline}")
            except TersorError as error:
                if number == 1:
                    raise
                reason = f"{pipeline}: {error}"
                raise CompressError(reason, self._result(best, End.FAILED, reason)) from error
            if self._is_too_far(made.step):
                return self._result(best, End.DROP, self._drop_line(made.step, best.step))
            if job.max_drop is None or not _is_slower(made.step, best.step):
                best = made = self._placed(made)
                if not only_narrows(pipeline):
                    self._trainable = made
        return self._result(best, End.COMPLETE, "")

    def _passes(self, pipeline: Pipeline, graph: Graph) -> PassOutcome:
        manager = PassManager(pipeline, (PassStages(self._observer.begin),))
        return manager.run(
            graph, target=self._job.target, calibration=self._job.data, latency=self._latency, score=self._score
        )

    def _made(
        self,
        name: str,
        outcome: PassOutcome,
        judge: Callable[[Executable], Figures],
        folder: Path | None,
        started: float,
    ) -> _Made:
        """Compile a graph, judge the program, and write it to a file beside the output."""
        job = self._job
        self._observer.begin(f"compile {name}")
        self._records += outcome.report.records
        finished = PassManager(_FINISH).run(outcome.graph, target=job.target)
        executable = compile_graph(
            finished.graph,
            job.target,
            threads=job.threads,
            choose=self._choices,
            report=Report((*self._records, *finished.report.records)),
            cache=KernelCache.of_user(),
        )
        file = None if folder is None else executable.save(folder / f"{len(self._steps)}.tersor")
        self._observer.begin(f"judge {name}")
        figures = judge(executable)
        weights = weights_of(finished.graph)
        step = Step(
            name=name,
            macs=outcome.graph.cost().macs,
            parameters=sum(weight.numel() for weight in weights),
            weight_bytes=sum(map(stored_bytes, weights)),
            artifact_bytes=None if file is None else file.stat().st_size,
            latency=figures.latency,
            error=figures.error,
            score=figures.score,
            records=outcome.report.records,
            seconds=time.perf_counter() - started,
        )
        return _Made(self._noted(step), executable, file, outcome.graph)

    def _unchanged(self, before: _Made, name: str, outcome: PassOutcome, started: float) -> _Made:
        """A step of which nothing stayed: the model is the one before."""
        self._records += outcome.report.records
        seconds = time.perf_counter() - started
        step = replace(before.step, name=name, records=outcome.report.records, seconds=seconds)
        return replace(before, step=self._noted(step))

    def _noted(self, step: Step) -> Step:
        self._steps.append(step)
        self._observer.finished(step)
        return step

    def _placed(self, made: _Made) -> _Made:
        """Move the step's file to where the output is wanted, at once, so that whatever comes next loses nothing."""
        if made.file is None or self._job.output is None:
            return made
        with writing(self._job.output):
            put(made.file, self._job.output)
        return replace(made, file=None)

    def _is_too_far(self, step: Step) -> bool:
        limit, original = self._job.max_drop, self._steps[0].score
        if limit is None or original is None or step.score is None:
            return False
        return original - step.score > limit + _ROUNDING

    def _drop_line(self, step: Step, best: Step) -> str:
        original = self._steps[0].score
        kept = "the original is kept, not compressed" if best.name == ORIGINAL else f"kept the model after {best.name}"
        return (
            f"{step.name} lowers the score from {score_text(original)} to {score_text(step.score)},"
            f" by more than {self._job.max_drop:g}; {kept}"
        )

    def _result(self, best: _Made, end: End, reason: str) -> Compressed:
        self._placed(best)
        kept = next(index for index, step in enumerate(self._steps) if step is best.step)
        setting = self._setting(best.executable.threads)
        return Compressed(
            best.executable,
            tuple(self._steps),
            kept,
            end,
            reason,
            setting,
            trainable=self._trainable.graph,
            trained_from=self._trainable.step.name,
            output=self._job.output,
        )

    def _setting(self, threads: int) -> Setting:
        job = self._job
        return Setting(
            model=job.graph.name,
            pipeline=str(job.plan.pipeline),
            target=job.target.name,
            threads=threads,
            data="" if job.data is None else job.data.name,
            evaluate="" if job.evaluation is None else job.evaluation.name,
            max_drop=job.max_drop,
            machine=describe_machine(),
            versions=describe_versions(),
            date=self._began.isoformat(sep=" ", timespec="seconds"),
        )


def _is_slower(step: Step, best: Step) -> bool:
    """Whether a step is slower than the best one by more than chance explains."""
    if step.latency is None or best.latency is None:
        return False
    return step.latency.speedup < best.latency.speedup * (1 - LEAST_NOISE)
