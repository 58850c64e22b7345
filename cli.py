"""The command line: declares commands, prints results, and turns every user's mistake into one line and exit code 2.

Heavy modules are imported inside of the commands, so that ``tersor --help`` is quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="tersor",
    help="Compiler-style graph optimization for PyTorch models, with every speedup measured.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Import a Python module that registers passes.")
]


@app.command()
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
      tersor opt model.ir -p O3 --bisect
    """
    from .passes.driver import OptRequest, run_bisect, run_opt

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
    raise typer.Exit(run_bisect(request, as_json) if bisect else run_opt(request, as_json))


@app.command()
def passes(plugin: PluginOption = None, as_json: JsonOption = False) -> None:
    """List the passes with their options, and the presets.

    \b
    Examples:
      tersor passes
      tersor passes --json
    """
    from .passes.driver import describe_passes, import_plugins, print_passes

    import_plugins(plugin or ())
    if as_json:
        print(json.dumps(describe_passes(), indent=2))
    else:
        print_passes()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 2 on a user's mistake, 1 when a search found something wrong."""
    try:
        app(arguments)
    except Exception as error:  # the one error boundary
        from .ir import TersorError

        if not isinstance(error, TersorError):
            raise
        message = " ".join(str(error).split())
        print(f"tersor: {message}", file=sys.stderr)
        raise SystemExit(2) from error
