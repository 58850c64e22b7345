"""The command ``tersor opt``: IR text in, IR text out, with all that helps to find out what a pass did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ConstantOption, DataOption, JsonOption, PluginOption, ShapeOption, print_json


def opt(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="IR text, with weights beside it in IN's .safetensors; or an .onnx file."),
    ],
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="Passes and presets, comma-separated.")] = "O2",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write IR text and weights, or an .onnx file; text to stdout if omitted."
        ),
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
    shape: ShapeOption = None,
    constant: ConstantOption = None,
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
    """Run passes on an IR file: IR text in, IR text or ONNX out.

    \b
    Examples:
      tersor opt model.ir -p "fold-batchnorm,fuse" -o smaller.ir
      tersor opt model.ir -p O3 --verify-each --check-each --timing -o out.ir
      tersor opt model.ir -p "O3,quantize" --target x86:native --data nets:batches -o integers.ir
      tersor opt model.ir -p O3 --bisect
      tersor opt model.onnx --shape x=1,3,224,224 -p canonicalize -o model.ir
      tersor opt model.ir -p "O2,quantize{keep=all}" --data nets:batches -o integers.onnx
    """
    from ..passes import PassManager, as_pipeline
    from ..passes import bisect as find_culprit
    from ..passes import instruments as shown
    from ..passes.instruments import When
    from . import opt_driver as driver
    from .tables import announce, describe_bisection, describe_outcome

    driver.import_plugins(plugin or ())
    stages = as_pipeline(pipeline)
    if output is not None and not bisect:
        driver.check_output(output)
    graph = driver.read_graph(source, shape, constant, require_weights=bisect)
    given = driver.surroundings(graph, stages, target, data or ())
    tensors = None if inputs is None or not (bisect or check_each) else driver.read_inputs(graph, inputs)
    if bisect:  # nothing is timed: it would differ every time
        culprit = find_culprit(
            graph, stages, inputs=tensors, target=given.target, calibration=given.calibration, tolerance=tolerance
        )
        if as_json:
            print_json({"pipeline": str(stages), "culprit": describe_bisection(culprit)})
        else:
            print(culprit if culprit is not None else f"all rewrites of {str(stages)!r} are right")
        raise typer.Exit(0 if culprit is None else 1)
    instruments = (
        shown.PassStages(announce),
        shown.VerifyEach() if verify_each else None,
        shown.CheckEach(tensors, tolerance=tolerance) if check_each else None,
        shown.PrintIR(When.BEFORE_ALL) if print_before_all else None,
        shown.PrintIR(When.AFTER_ALL) if print_after_all else None,
        shown.PrintIR(When.ON_CHANGE) if print_on_change else None,
        None if dump_dir is None else shown.DumpEach(dump_dir),
        shown.PrintTiming() if timing else None,
        None if reproducer_dir is None else shown.Reproducer(reproducer_dir, given.options),
    )
    manager = PassManager(stages, tuple(one for one in instruments if one is not None), bisect_limit)
    outcome = manager.run(graph, target=given.target, calibration=given.calibration, latency=given.latency)
    if output is not None:
        driver.write_graph(outcome.graph, output)
    if as_json:
        print_json({"pipeline": str(stages), **describe_outcome(outcome, output)})
    elif output is None:
        print(outcome.graph, end="")
