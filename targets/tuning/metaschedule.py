"""MetaSchedule, TVM's general search, for kernels that have no template.

Its search strategy and cost model are used as they are. Building and running are ours: a pool of preloaded workers,
and a process of its own whose crashes are results. Its database is a pair of JSON files in its own folder under the
log directory, so that a search goes on where the last one stopped.

`tvm.s_tir.tensor_intrin` imports the intrinsics of every GPU, which takes 35 to 45 seconds; a stand-in package with the
intrinsics of the processor's family takes its place.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import tvm
from tvm import s_tir, tirx

from ...ir.foreign import Json
from ..codegen.options import Options
from ..machines.catalog import usable_cores
from ..machines.target import Cpu
from ..templates import loops
from ..templates.option import Option
from . import scheduled
from .builder import WorkerPool
from .candidate import compile_function
from .log import target_folder
from .measure import Measurer
from .outcome import Outcome
from .records import Purpose, Record
from .sandbox import RunResult, Sandbox, Setup
from .task import Task
from .timing import TimingPolicy
from .worker import describe_error

_FOLDER = "metaschedule"
_FAMILIES = {"x86": "x86", "arm": "arm_cpu"}
_BATCH = 16
_BUILD_TIMEOUT = 60.0
_RUN_TIMEOUT = 10.0
_SETUP_TIMEOUT = 120.0


@dataclass(frozen=True)
class BestSoFar:
    """The best after a trial: seconds since the start, trials so far, and the fastest kernel's seconds."""

    elapsed: float
    trials: int
    best: float


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes
    ----------
    seconds
        Of the fastest schedule; infinite when none computed the right numbers.
    trials
        Schedules measured.
    failures
        How many of them failed, by status.
    history
        The best after each trial.
    """

    seconds: float
    trials: int
    failures: dict[str, int]
    history: tuple[BestSoFar, ...]


def tune(
    function: tirx.PrimFunc,
    target: Cpu,
    log_dir: Path,
    *,
    trials: int = 64,
    max_seconds: float | None = None,
    seed: int = 0,
) -> Search:
    """Search schedules of a function and keep what is measured in the database under ``log_dir``.

    Parameters
    ----------
    function
        An unscheduled PrimFunc, as `tvm.te.create_prim_func` makes it.
    target
        The machine, which must be this one; ``target.cores`` is the number of threads.
    trials
        Schedules to measure.
    max_seconds
        Stop after the batch in which so much time has passed.
    seed
        Of the search.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool(usable_cores(), (scheduled.__name__,), timeout=_BUILD_TIMEOUT))
        pool.start(usable_cores())
        sandbox = Sandbox(scheduled.__name__, setup_timeout=_SETUP_TIMEOUT)
        stack.callback(sandbox.close)
        sandbox.warm_up()
        return _Searcher(function, target, log_dir, seed, pool, sandbox).run(trials, start, max_seconds)


def best_trace(function: tirx.PrimFunc, target: Cpu, log_dir: Path) -> str | None:
    """How the fastest known schedule of an unscheduled PrimFunc is made, as JSON text; None if there is none."""
    folder = database_folder(target, log_dir)
    if not folder.is_dir():
        return None
    tvm_target = tvm.target.Target(target.tvm_target())
    record = _database(folder).query_tuning_record(_module(function), tvm_target, "main")
    return None if record is None else json.dumps(_plain(record.trace.as_json()))


def tune_task(
    task: Task,
    measurer: Measurer,
    log_dir: Path,
    keep: Callable[[Record], object],
    *,
    trials: int = 64,
    seed: int = 0,
) -> None:
    """Tune a kernel that has no template of its own, and measure the winner beside the fixed rule.

    Parameters
    ----------
    task
        A task of which `is_searchable` holds.
    measurer
        Measures the winner as any candidate: against the interpreter, and beside the default.
    log_dir
        Where the database is.
    keep
        Called with each record as soon as there is one; none when no schedule computed the right numbers.
    trials, seed
        See `tune`.
    """
    default = Options(task.workload, task.target).default
    function = loops.definition(task.workload.spec)
    tune(function, task.target, log_dir, trials=trials, seed=seed)
    trace = best_trace(function, task.target, log_dir)
    if trace is None:
        return
    option = Option(default.template, loops.LoopKnobs(trace))
    purposes: tuple[Purpose, ...] = ("trial", "final", "final")

    def keep_outcome(outcome: Outcome, purpose: Purpose) -> None:
        keep(Record.now(task, outcome, purpose))

    for purpose in purposes:
        measurer.measure(task, [default, option], default, keep=partial(keep_outcome, purpose=purpose))


def is_searchable(task: Task) -> bool:
    """Whether a task's kernel has no template of its own."""
    return isinstance(task.workload.spec, loops.LoopSpec)


def database_folder(target: Cpu, log_dir: Path) -> Path:
    """Where the database of a target is."""
    return target_folder(log_dir, target.name) / _FOLDER


def load_intrinsics(family: str) -> None:
    """Register the tensor intrinsics of a processor family, and of no other."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        return
    package = ModuleType(name)
    package.__path__ = [str(Path(folder) / "tensor_intrin") for folder in s_tir.__path__]
    sys.modules[name] = s_tir.tensor_intrin = package
    if family in _FAMILIES:
        import_module(f"{name}.{_FAMILIES[family]}")


class _Searcher:
    """One search: MetaSchedule proposes, we build and run, and tell it."""

    def __init__(
        self,
        function: tirx.PrimFunc,
        target: Cpu,
        log_dir: Path,
        seed: int,
        executor: Executor,
        sandbox: Sandbox,
    ) -> None:
        load_intrinsics(target.family)
        from tvm.s_tir import meta_schedule

        self._ms = meta_schedule
        self._target = target
        self._tvm_target = tvm.target.Target(target.tvm_target())
        self._executor = executor
        self._sandbox = sandbox
        self._module = _module(function)
        types = scheduled.argument_types(function)
        self._setup: Setup = (
            scheduled.prepare,
            (compile_function(function, target, pipeline=None), types, target.cores),
        )
        folder = database_folder(target, log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._database = _database(folder)
        self._workload = self._database.commit_workload(self._module)
        self._context = meta_schedule.TuneContext(
            mod=self._module,
            target=self._tvm_target,
            space_generator="post-order-apply",
            search_strategy="evolutionary",
            task_name="main",
            rand_state=seed + 1,
            num_threads=usable_cores(),
        )
        self._model = meta_schedule.cost_model.CostModel.create("xgb", num_tuning_cores=usable_cores())

    def run(self, trials: int, start: float, max_seconds: float | None) -> Search:
        """Search until one of the limits is reached."""
        best, done = float("inf"), 0
        failures: dict[str, int] = {}
        history: list[BestSoFar] = []
        spaces = self._context.generate_design_space()
        self._context.pre_tuning(trials, min(_BATCH, trials), spaces, self._database, self._model)
        try:
            while done < trials and (candidates := self._context.generate_measure_candidates()):
                results = []
                for result in self._measure([candidate.sch.mod for candidate in candidates]):
                    results.append(result)
                    if result.status == "ok":
                        best = min(best, result.seconds)
                    else:
                        failures[result.status] = failures.get(result.status, 0) + 1
                    done += 1
                    history.append(BestSoFar(time.perf_counter() - start, done, best))
                self._tell(candidates, results)
                if max_seconds is not None and time.perf_counter() - start >= max_seconds:
                    break
        finally:
            self._context.post_tuning()
        return Search(best, done, failures, tuple(history))

    def _measure(self, modules: Sequence[s_tir.meta_schedule.MeasureCandidate]) -> Iterator[RunResult]:
        """Build all, then run all; yields each result when there is one, in order."""
        submit, target = self._executor.submit, self._target
        futures = [submit(scheduled.build_scheduled, tvm.ir.save_json(module), target) for module in modules]
        self._sandbox.prepare(self._setup)
        done = wait(futures, _BUILD_TIMEOUT * len(futures)).done
        self._sandbox.wait_ready()
        for future in futures:
            if future not in done:
                future.cancel()
                yield RunResult("timeout", detail="not built in time")
            elif error := future.exception():
                yield RunResult("build-error", detail=describe_error(error))
            else:
                code, _ = future.result()
                yield self._sandbox.run(self._setup, scheduled.run, code, TimingPolicy(), timeout=_RUN_TIMEOUT)

    def _tell(self, candidates: Sequence[s_tir.meta_schedule.MeasureCandidate], results: Sequence[RunResult]) -> None:
        ms = self._ms
        told = [
            ms.runner.RunnerResult([result.seconds], None)
            if result.status == "ok"
            else ms.runner.RunnerResult(None, f"{result.status}: {result.detail}")
            for result in results
        ]
        self._model.update(self._context, candidates, told)
        self._context.notify_runner_results(candidates, told)
        for candidate, result in zip(candidates, results, strict=True):
            if result.status == "ok":
                record = ms.database.TuningRecord(
                    candidate.sch.trace, self._workload, [result.seconds], self._tvm_target, candidate.args_info
                )
                self._database.commit_tuning_record(record)


def _plain(value: Json) -> Json:
    """TVM's containers and numbers as Python's."""
    value = getattr(value, "value", value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(item) for item in value]


def _module(function: tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": function.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)})


def _database(folder: Path) -> s_tir.meta_schedule.Database:
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    return JSONDatabase(work_dir=str(folder))
