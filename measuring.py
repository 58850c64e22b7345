"""What this machine says of a graph: how long its program takes, and how good it is.

Passes ask for both through `tersor.passes`, which knows no target. Programs are made here with the pipeline O3, and
with the records of tuning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeGuard

from . import passes
from .evaluation import Evaluation, compiled_model, interpreted_model
from .ir import Graph, TersorError, at_hints
from .passes import Pipeline
from .targets import Cpu, Executable, Target
from .targets.codegen.build import compile_together
from .targets.codegen.kernel_cache import KernelCache
from .targets.tuning.crowding import Crowding
from .targets.tuning.driver import check_measurable
from .targets.tuning.log import target_folder
from .targets.tuning.measured_latency import MeasuredLatency
from .targets.tuning.times import kept_times
from .targets.tuning.tuned import Tuned, load_tuned

# What code generation needs of a graph, whatever the pipeline: before it, ops that have kernels, layers on integers
# where the model has these, weights that are constants, and nothing that nobody reads; after it, no batch norm left,
# and a physical layout for every value.
PREPARING_PASSES = "fold-empty,decompose,integer-layers,fold-constants,dce"
SHAPELESS_PASSES, FINAL_PASSES = "fold-batchnorm", "layout"  # the last ones need fixed shapes
REQUIRED_PASSES = f"{SHAPELESS_PASSES},{FINAL_PASSES}"


def latency_of(
    pipeline: Pipeline, target: Target | None, log_dir: Path | None = None, cache: KernelCache | None = None
) -> MeasuredLatency | None:
    """Measures for the passes of a pipeline that ask, with the records of ``log_dir`` on top of those that ship.

    None where no pass asks, or the target's code does not run here. Compiled kernels are kept in ``cache``, and
    times in ``log_dir`` or beside them; nothing is kept without a cache.
    """
    if target is None or not any(one.measures for one in pipeline.passes) or not runs_here(target):
        return None
    tuned, kept = load_tuned(target, log_dir), None
    if cache is not None:
        folder = cache.folder.parent if log_dir is None else target_folder(log_dir, target.name)
        kept = kept_times(folder, target, _threads(target), tuned)
    return MeasuredLatency(_compiler_for(target, tuned, cache), kept, Crowding(_threads(target)))


def score_of(
    evaluation: Evaluation | None,
    target: Target | None,
    log_dir: Path | None = None,
    cache: KernelCache | None = None,
) -> Callable[[Graph], float] | None:
    """Scores graphs as programs of the target; interpreted where there is none, or its code does not run here."""
    if evaluation is None:
        return None
    if target is None or not runs_here(target):
        return lambda graph: evaluation(interpreted_model(graph))
    programs = _compiler_for(target, load_tuned(target, log_dir), cache)
    return lambda graph: evaluation(compiled_model(*programs([graph])))


def _compiler_for(
    target: Cpu, tuned: Tuned, cache: KernelCache | None
) -> Callable[[Sequence[Graph]], list[Executable]]:
    """Makes programs of graphs that no pipeline has seen, or not the whole of one."""

    def programs(graphs: Sequence[Graph]) -> list[Executable]:
        pipeline = f"O3,{REQUIRED_PASSES}"
        optimized = [passes.run_passes(at_hints(graph), pipeline, target=target) for graph in graphs]
        return compile_together(optimized, target, threads=_threads(target), choose=tuned, cache=cache)

    return programs


def _threads(target: Cpu) -> int:
    """Of one call of a program that is measured here."""
    return min(target.cores, os.cpu_count() or 1)


def runs_here(target: Target) -> TypeGuard[Cpu]:
    """Whether code for ``target``, a processor, runs on this machine."""
    try:
        check_measurable(target)
    except TersorError:
        return False
    return True
