"""The command ``tersor compress``: reads options, shows how it goes on, prints the figures of each step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .options import (
    ConstantOption,
    DataOption,
    EvaluateOption,
    JsonOption,
    LogDirOption,
    ModelArgument,
    PluginOption,
    ShapeOption,
    SplitOption,
    TargetOption,
    load_named,
    print_json,
)

if TYPE_CHECKING:
    from ..compression.result import Compressed

_INTERRUPTED = 130  # as shells report Ctrl-C


def compress(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write; written after each step.")],
    pipeline: Annotated[
        str,
        typer.Option("-p", "--pipeline", help='Passes and presets, such as "O3,prune-channels{macs=0.6},quantize".'),
    ],
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    data: DataOption = None,
    target: TargetOption = "x86:native",
    evaluate: EvaluateOption = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Stop when the number of --evaluate falls by more, and keep the fastest model before that."),
    ] = None,
    threads: SplitOption = None,
    report: Annotated[
        Path | None, typer.Option(help="The HTML page to write; the output's name with .html if omitted.")
    ] = None,
    to_torch: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.pt2",
            help="Also write the module for further training: .pt2, or .safetensors for its state alone.",
        ),
    ] = None,
    log_dir: LogDirOption = None,
    plugin: PluginOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print all that the passes report.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a model step by step: after each, it is compiled, timed beside the original, and evaluated.

    Writes the compiled model, and a report as a page of HTML. Whatever fails later, what succeeded is kept.

    \b
    Examples:
      tersor compress model.pt2 -p "O3,quantize" --data a.npy --data b.npy -o small.tersor
      tersor compress nets:make -p "O3,prune-channels{macs=0.6},low-rank,quantize" --data nets:batches -o small.tersor
      tersor compress nets:make -p "O3,low-rank,quantize" --data nets:batches --evaluate nets:accuracy --max-drop 0.01
                      -o small.tersor --report small.html
      tersor compress nets:make -p "prune-channels{macs=0.6},O3" -o small.tersor --to-torch small.pt2
    """
    from ..compression.compress import check_max_drop
    from ..compression.compress import compress as run
    from ..compression.data import open_data
    from ..compression.plan import make_plan, only_narrows
    from ..compression.result import CompressError
    from ..evaluation import open_evaluation
    from ..frontend import check_module_path
    from ..ir import TersorError
    from ..ir.files import check_writable
    from ..targets import resolve_target
    from .compress_progress import StepsShown
    from .opt_driver import import_plugins
    from .tables import progress

    page = report or output.with_suffix(".html")
    for path in (output, page):
        check_writable(path)
    if page.resolve() == output.resolve():
        raise TersorError(f"{page} is the output already; give the report another name")
    if to_torch is not None:
        check_module_path(to_torch)
    import_plugins(plugin or ())
    plan = make_plan(pipeline)
    if to_torch is not None and all(map(only_narrows, plan.steps)):
        raise TersorError("--to-torch: this pipeline makes no smaller network that could be trained; leave it out")
    resolve_target(target)
    check_max_drop(max_drop, evaluate is not None)
    evaluation = open_evaluation(evaluate)
    try:
        with progress() as shown:
            shown.begin("load")
            graph, _ = load_named(model, shape, constant)
            compressed = run(
                graph,
                pipeline=pipeline,
                data=open_data(data or (), graph),
                target=target,
                evaluate=evaluation,
                max_drop=max_drop,
                threads=threads,
                log_dir=log_dir,
                output=output,
                observer=StepsShown(shown),
            )
    except CompressError as error:
        _show(error.compressed, page, to_torch, verbose, as_json)
        raise
    except KeyboardInterrupt as error:
        Console(stderr=True).print("interrupted before the first step was made: nothing is written")
        raise typer.Exit(_INTERRUPTED) from error
    _show(compressed, page, to_torch, verbose, as_json)
    if compressed.is_interrupted:
        raise typer.Exit(_INTERRUPTED)


def _show(compressed: Compressed, page: Path, module: Path | None, verbose: bool, as_json: bool) -> None:
    """Write the page and the module, and print the table and where everything is."""
    from .tables import decision_lines, print_precisions, print_table, steps_table

    compressed.save_page(page)
    if module is not None:
        compressed.save_module(module)
    if as_json:
        to_torch = None if module is None else {"file": str(module), "after": compressed.trained_from}
        print_json(compressed.to_json() | {"report": str(page), "to_torch": to_torch})
        return
    console = Console(highlight=False)
    print_table(steps_table(compressed))
    for line in decision_lines(compressed, verbose=verbose):
        console.print(line, markup=False, soft_wrap=True)
    print_precisions(compressed.report, verbose=verbose)
    if compressed.reason:
        console.print(f"stopped: {compressed.reason}", style="bold", markup=False, soft_wrap=True)
    if compressed.advice:
        console.print(f"advice: {compressed.advice}", markup=False, soft_wrap=True)
    console.print(f"kept {compressed.best.name}: {compressed.headline}", style="bold", markup=False, soft_wrap=True)
    console.print(f"wrote {compressed.output} and {page}", markup=False, soft_wrap=True)
    if module is not None:
        console.print(f"wrote {module}, the module after {compressed.trained_from}", markup=False, soft_wrap=True)
