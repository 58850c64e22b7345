"""The command ``tersor tune``: reads options, shows progress, prints what was reached."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..targets.tuning import DEFAULT_LOG_DIR
from .options import (
    ConstantOption,
    DataOption,
    JsonOption,
    ModelArgument,
    PipelineOption,
    PluginOption,
    ShapeOption,
    SplitOption,
    load_named,
    print_json,
)

if TYPE_CHECKING:
    from ..ir.foreign import Json
    from ..targets.tuning.result import TuningResult


def tune(
    model: ModelArgument,
    target: Annotated[str, typer.Option(help="Machine to tune for; its code must run here.")] = "x86:native",
    pipeline: PipelineOption = "O3",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Candidates to measure, those already in the log included.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--time", help="Seconds to spend on tuning.")] = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    data: DataOption = None,
    log_dir: Annotated[
        Path, typer.Option(help="Folder of records: what it holds is not measured again, what is measured is added.")
    ] = DEFAULT_LOG_DIR,
    threads: SplitOption = None,
    shipped: Annotated[bool, typer.Option(help="Start from the records that ship with Tersor, too.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the random picks.")] = 0,
    metaschedule: Annotated[
        int, typer.Option(min=0, metavar="TRIALS", help="Schedules to try for each kernel that has no template.")
    ] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the tuned model to this file.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw the convergence to this file (.svg, .png, .pdf).")] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure kernel candidates until there is nothing more to gain or the budget is spent. Ctrl-C keeps all records.

    \b
    Examples:
      tersor tune model.pt2 --time 120 -o model.tersor
      tersor tune package.module:factory --trials 500 --log-dir logs
      tersor tune model.tersor --time 60 --chart convergence.svg
    """
    from ..compiler import CompileOptions, optimize_in_stages
    from ..compression.data import open_data
    from ..ir import TersorError
    from ..ir.files import check_writable
    from ..targets import compile_graph
    from ..targets.tuning.chart import draw
    from ..targets.tuning.driver import check_measurable, load_records, tune_graph
    from ..targets.tuning.log import target_folder
    from ..targets.tuning.scheduler import Budget
    from ..targets.tuning.tuned import tuned_by
    from .opt_driver import import_plugins
    from .tables import progress
    from .tuning_progress import observer

    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise TersorError(f"--time must be a positive number of seconds, not {seconds:g}")
    for path in (output, chart):
        if path is not None:
            check_writable(path)
    import_plugins(plugin or ())
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with progress() as shown:
        shown.begin("load")
        graph, _ = load_named(model, shape, constant)
        options = CompileOptions(target, pipeline, open_data(data or (), graph), log_dir=log_dir, threads=threads)
        optimized = optimize_in_stages(graph, options, shown.begin)
    machine = check_measurable(optimized.target)
    console.print(f"measurements are added to {target_folder(log_dir, machine.name)}", markup=False)
    records = load_records(machine, log_dir, shipped=shipped, say=lambda line: console.print(line, markup=False))
    result = tune_graph(
        optimized.graph,
        machine,
        Budget(trials, seconds),
        log_dir=log_dir,
        records=records,
        observer=observer(),
        seed=seed,
        metaschedule_trials=metaschedule,
    )
    if output is not None:
        with progress() as shown:
            executable = compile_graph(
                optimized.graph,
                optimized.target,
                threads=threads,
                choose=tuned_by(result.records, machine, log_dir),
                report=optimized.report,
                begin=shown.begin,
                cache=options.kernels,
            )
            shown.begin("write")
            executable.save(output)
    if chart is not None:
        draw(result.history, chart, graph.name)
    if as_json:
        print_json(describe(result))


def describe(result: TuningResult) -> dict[str, Json]:
    """A session's result as JSON types; what was not timed is null."""
    from ..ir.codec import encode

    described: dict[str, Json] = encode(
        {
            "untuned_seconds": result.untuned_seconds,
            "tuned_seconds": result.tuned_seconds,
            "trials": result.trials,
            "seconds": result.seconds,
            "reason": result.reason,
            "interrupted": result.interrupted,
            "failures": dict(result.failures),
            "tasks": tuple(
                {
                    "location": one.task.location,
                    "workload": one.task.workload,
                    "uses": one.task.weight,
                    "option": one.option,
                    "default_seconds": one.default_seconds,
                    "seconds": one.seconds,
                    "trials": one.trials,
                    "failed": one.failed,
                    "candidates": one.candidates,
                }
                for one in result.tasks
            ),
            "batches": tuple(
                {
                    "task": report.task,
                    "trials": report.trials,
                    "failed": report.failed,
                    "rank_correlation": report.correlation,
                    "regret": report.regret,
                }
                for report in result.batches
            ),
            "history": result.history,
        }
    )
    return described
