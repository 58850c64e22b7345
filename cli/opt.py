"""The command ``tersor opt``: IR text in, IR text out, with all that helps to find out what a pass did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DataOption, JsonOption, PluginOption, print_json

if TYPE_CHECKING:
    from .opt_driver import Surroundings


def opt(
    source: Annotated[Path, typer.Argument(metavar="IN", help="IR text; weights beside it in IN's .safetensors.")],
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="Passes and presets, comma-separated.")] = "O2",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write IR text and weights; text only to stdout if omitted."),
    ] = None,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Verify the graph after each pass.")] = False,
    check_each: Annotated[
        bool, typer.Option("--check-each", help="Compare numbers before and after each pass.")
    ] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="For --check-each and --bisect: relative to an output's largest magnitude.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Machine to optimize for; passes measure on it if it is here.")
    ] = None,
    data: DataOption = None,
    inputs: Annotated[
        Path | None, typer.Option(help="For --check-each and --bisect: a .safetensors file with one tensor per input.")
    ] = None,
    print_before_all: Annotated[bool, typer.Option("--print-before-all", help="Print IR before each pass.")] = False,
    print_after_all: Annotated[bool, typer.Option("--print-after-all", help="Print IR after each pass.")] = False,
    print_on_change: Annotated[
        bool, typer.Option("--print-on-change", help="Print IR after each pass that changed it.")
    ] = False,
    dump_dir: Annotated[
        Path | None, typer.Option(help="Write 00-input.ir, 01-canonicalize.ir, … into a folder.")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print time and op counts of each pass.")] = False,
    bisect_limit: Annotated[int | None, typer.Option(min=0, help="Stop after this many rewrites.")] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Find the first rewrite that goes wrong.")] = False,
    reproducer_dir: Annotated[Path | None, typer.Option(help="Where to write a reproducer if a pass fails.")] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run passes on an IR file: IR text in, IR text out.

    \b
    Examples:
      tersor opt model.ir -p "fold-batchnorm,fuse" -o smaller.ir
      tersor opt model.ir -p O3 --verify-each --check-each --timing -o out.ir
      tersor opt model.ir -p "O3,quantize" --target x86:native --data nets:batches -o integers.ir
      tersor opt model.ir -p O3 --bisect
    """
    from ..passes import as_pipeline
    from .opt_driver import OptRequest, run_bisect, run_opt
    from .tables import announce, describe_bisection, describe_outcome

    request = OptRequest(
        source=source,
        pipeline=pipeline,
        output=output,
        verify_each=verify_each,
        check_each=check_each,
        tolerance=tolerance,
        inputs=inputs,
        print_before_all=print_before_all,
        print_after_all=print_after_all,
        print_on_change=print_on_change,
        dump_dir=dump_dir,
        timing=timing,
        bisect_limit=bisect_limit,
        reproducer_dir=reproducer_dir,
        plugins=tuple(plugin or ()),
    )
    given = _surroundings(target, data or ())
    if bisect:
        culprit = run_bisect(request, given)
        if as_json:
            print_json({"pipeline": str(as_pipeline(pipeline)), "culprit": describe_bisection(culprit)})
        else:
            print(culprit if culprit is not None else f"all rewrites of {str(as_pipeline(pipeline))!r} are right")
        raise typer.Exit(0 if culprit is None else 1)
    outcome = run_opt(request, given, announce)
    if as_json:
        print_json({"pipeline": str(as_pipeline(pipeline)), **describe_outcome(outcome, output)})
    elif output is None:
        print(outcome.graph, end="")


def _surroundings(target: str | None, data: Sequence[str]) -> Surroundings:
    """What the passes of `opt` may look at besides the graph; what is not asked for is not imported."""
    from .opt_driver import Surroundings

    given = Surroundings(options=tuple(option for name in data for option in ("--data", name)))
    if data:
        from ..compression.data import open_data

        given = replace(given, calibration=lambda graph: open_data(data, graph))
    if target is not None:
        from ..compiler import latency_of
        from ..targets import resolve_target

        record = resolve_target(target)
        options = ("--target", target, *given.options)
        given = replace(given, target=record, latency=lambda pipeline: latency_of(pipeline, record), options=options)
    return given
