"""The commands ``tersor analyze …``: what a model could lose, before it is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .options import (
    ConstantOption,
    DataOption,
    EvaluateOption,
    JsonOption,
    ModelArgument,
    PluginOption,
    ShapeOption,
    load_named,
    print_json,
)

if TYPE_CHECKING:
    from ..passes.sensitivity import SensitivityScan

_INTERRUPTED = 130  # as shells report Ctrl-C

analyze = typer.Typer(
    name="analyze", help="Find out what a model could lose, before it is compressed.", no_args_is_help=True
)


@analyze.callback()
def _group() -> None:
    """Find out what a model could lose, before it is compressed."""


@analyze.command()
def sensitivity(
    model: ModelArgument,
    data: DataOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file for the JSON that passes read.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="The HTML page to write; the output's name with .html if omitted.")
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(help="What is tried, such as channels,bits; channels, ranks, bits and zeros if omitted."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=0.25,0.5",
            help="Other settings than the usual: channels by the share that goes, ranks by the share of the full rank "
            "that stays, bits by their number; may be repeated.",
        ),
    ] = None,
    evaluate: EvaluateOption = None,
    seconds: Annotated[
        float | None, typer.Option(help="Score no further model by --evaluate when so much time has passed.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="Which channels go first, as in prune-channels{criterion=…}.")] = "l1",
    batches: Annotated[int, typer.Option(help="Batches of the data that are looked at.")] = 8,
    reestimate: Annotated[
        bool, typer.Option("--reestimate", help="Measure batch norms again behind each change: reestimate-batchnorm.")
    ] = False,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    plugin: PluginOption = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print also which layers cannot be changed, and why.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what the outputs lose when one layer alone has fewer channels, lower rank, or fewer bits.

    Nothing is compiled, and nothing is changed. The JSON tells passes how much of each layer to take.

    \b
    Examples:
      tersor analyze sensitivity model.pt2 --data a.npy --data b.npy
      tersor analyze sensitivity nets:make --data nets:batches -o scan.json --report scan.html
      tersor analyze sensitivity nets:make --data nets:batches --evaluate nets:accuracy --axes channels,bits
                                 --settings channels=0.25,0.5,0.75 -o scan.json
      tersor compress nets:make --data nets:batches -p "prune-channels{macs=0.5,sensitivity=scan.json}" -o small.tersor
    """
    from ..compression.data import open_data
    from ..compression.sensitivity.analyze import analyze_sensitivity, check_request
    from ..compression.sensitivity.page import write_page
    from ..evaluation import open_evaluation
    from ..ir import TersorError
    from ..ir.files import check_writable
    from .opt_driver import import_plugins
    from .tables import progress

    page = report or (None if output is None else output.with_suffix(".html"))
    for path in (output, page):
        if path is not None:
            check_writable(path)
    if output is not None and page is not None and page.resolve() == output.resolve():
        raise TersorError(f"{page} is the output already; give the report another name")
    if not data:
        raise TersorError("sensitivity needs examples of inputs: give --data, a loader (module:function) or files")
    import_plugins(plugin or ())
    names, chosen = _axes(axes), _settings(settings)
    check_request(names, chosen, criterion, batches, seconds, evaluate is not None)
    evaluation = open_evaluation(evaluate)
    try:
        with progress() as shown:
            shown.begin("load")
            graph, _ = load_named(model, shape, constant)
            scan = analyze_sensitivity(
                graph,
                data=open_data(data, graph),
                axes=names,
                settings=chosen,
                evaluate=evaluation,
                criterion=criterion,
                batches=batches,
                reestimate=reestimate,
                seconds=seconds,
                progress=shown.show,
            )
    except KeyboardInterrupt as error:
        Console(stderr=True).print("interrupted before all errors were measured: nothing is written")
        raise typer.Exit(_INTERRUPTED) from error
    if output is not None:
        scan.save(output)
    if page is not None:
        write_page(scan, page)
    _show(scan, output, page, verbose, as_json)
    if scan.is_interrupted:
        raise typer.Exit(_INTERRUPTED)


def _show(scan: SensitivityScan, output: Path | None, page: Path | None, verbose: bool, as_json: bool) -> None:
    from .sensitivity_table import sensitivity_lines
    from .tables import console

    if as_json:
        files = {"output": None if output is None else str(output), "report": None if page is None else str(page)}
        print_json(scan.to_json() | files)
        return
    shown = console()
    for line in sensitivity_lines(scan, shown.width, verbose=verbose):
        shown.print(line, soft_wrap=True)
    written = " and ".join(str(path) for path in (output, page) if path is not None)
    if written:
        shown.print(f"wrote {written}", soft_wrap=True)


def _axes(given: str | None) -> list[str] | None:
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _settings(given: Sequence[str] | None) -> dict[str, tuple[float, ...]]:
    """Settings by axis, from ``--settings``; raises TersorError where they are no numbers."""
    from ..ir import TersorError

    found = {}
    for text in given or ():
        name, _, listed = text.partition("=")
        try:
            found[name.strip()] = tuple(float(one) for one in listed.split(","))
        except ValueError as error:
            raise TersorError(
                f"--settings {text}: must be AXIS=NUMBER,NUMBER,…, for example channels=0.25,0.5,0.75"
            ) from error
    return found
