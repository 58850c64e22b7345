"""The facade: a model in, a compiled program out. It is the one place that knows frontend, passes and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import passes
from .frontend import from_torch
from .ir import Graph, TersorError, weights_loaded
from .passes import PassManager, as_pipeline
from .passes.instruments.base import Instrument, Step
from .targets import Executable, Target, compile_graph, resolve_target
from .targets.executable import check_threads

# What code generation needs of a graph, whatever the pipeline: no batch norm left, a physical layout for every value.
REQUIRED_PASSES = "fold-batchnorm,layout"


def compile(
    graph_or_module: Any,
    example_inputs: Any = None,
    *,
    target: str | Target = "x86:native",
    pipeline: str = "O3",
    calibration: Iterable[Any] | None = None,
    tune: int = 0,
    log_dir: str | Path | None = None,
    threads: int | None = None,
) -> Executable:
    """Compile a model.

    Parameters
    ----------
    graph_or_module
        A `tersor.ir.Graph`, an ``nn.Module`` or an ``ExportedProgram``; never changed.
    example_inputs
        Tensors to export a module with; not needed for the other two.
    target
        A name (see ``tersor targets``) or a `Target`.
    pipeline
        Text of passes and presets, for example ``"O3"``.
    calibration
        Batches for passes that need data.
    tune
        Measured trials to spend on tuning; only 0 is possible so far.
    log_dir
        Where tuning records are kept.
    threads
        Threads of one call, which the work is split for; by default all cores this process may use.

    Returns
    -------
    Executable
        Callable like the model; ``exe.report`` tells what each pass did.

    Raises
    ------
    TersorError
        For whatever in the input cannot be compiled, with what to do.
    """
    if tune or log_dir is not None:
        raise TersorError("tuning is not available in this version; call compile() without tune and log_dir")
    return compile_in_stages(
        graph_or_module,
        example_inputs,
        target=target,
        pipeline=pipeline,
        calibration=calibration,
        threads=threads,
        begin=lambda stage: None,
    )


def run_passes(
    graph: Graph,
    pipeline: str,
    *,
    target: str | Target | None = None,
    calibration: Iterable[Any] | None = None,
    **options: Any,
) -> Graph:
    """Optimize a graph; `tersor.passes.run_passes` with targets by name.

    Parameters
    ----------
    graph
        Where to start from; never changed.
    pipeline
        Text of passes and presets, for example ``"fold-batchnorm,fuse"``.
    target
        The machine to optimize for: a name, a `Target`, or None for passes that need none.
    calibration
        Batches of inputs, for passes that need data.
    options
        ``instruments`` and ``bisect_limit``, see `tersor.passes.run_passes`.

    Raises
    ------
    TersorError
        For an unknown pass, option or target, a malformed pipeline or graph, or a pass that fails.
    """
    record = None if target is None else resolve_target(target)
    return passes.run_passes(graph, pipeline, target=record, calibration=calibration, **options)


def compile_in_stages(
    graph_or_module: Any,
    example_inputs: Any,
    *,
    target: str | Target,
    pipeline: str,
    calibration: Iterable[Any] | None,
    threads: int | None,
    begin: Callable[[str], None],
) -> Executable:
    """`compile`, telling ``begin`` the name of each stage when it starts."""
    record = resolve_target(target)
    if threads is not None:
        record = replace(record, cores=check_threads(threads))
    stages = as_pipeline(",".join(text for text in (pipeline, REQUIRED_PASSES) if text))
    begin("export")
    graph = graph_or_module if isinstance(graph_or_module, Graph) else from_torch(graph_or_module, example_inputs)
    if not weights_loaded(graph):
        raise TersorError("the graph's weights are not loaded: read it by load_ir, or give its weights to ir.parse")
    manager = PassManager(stages, instruments=(_PassStages(begin),))
    outcome = manager.run(graph, target=record, calibration=calibration)
    return compile_graph(outcome.graph, record, threads=threads, report=outcome.report, begin=begin)


class _PassStages(Instrument):
    def __init__(self, begin: Callable[[str], None]) -> None:
        self._begin = begin

    def before(self, step: Step, graph: Graph) -> None:
        self._begin(f"pass {step.one.name} ({step.index + 1} of {step.count})")
