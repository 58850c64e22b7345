"""The command line: declares commands, prints results, and turns every user's mistake into one line and exit code 2.

Heavy modules are imported inside of the commands, so that ``tersor --help`` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .cli_log import log
from .cli_rpc import rpc_server, rpc_tracker
from .cli_tune import tune

if TYPE_CHECKING:
    from .frontend import LoadedModel
    from .targets import Executable

app = typer.Typer(
    name="tersor",
    help="Compiler-style graph optimization for PyTorch models, with every speedup measured. "
    "Kernels are chosen by analytic models, and by measurements where there are any.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command()(tune)
app.add_typer(log)
app.command()(rpc_tracker)
app.command()(rpc_server)

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Import a Python module that registers passes.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of one call; all usable cores if omitted.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .pt2 file, an IR file, package.module:factory, or a .tersor file.")
]
TargetOption = Annotated[str, typer.Option(help="Machine to compile for; see `tersor targets`.")]
PipelineOption = Annotated[str, typer.Option("-p", "--pipeline", help="Passes and presets, comma-separated.")]
LogDirOption = Annotated[
    Path | None, typer.Option(help="Folder of tuning records, used on top of those that ship with Tersor.")
]


@app.command()
def compile(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    target: TargetOption = "x86:native",
    pipeline: PipelineOption = "O3",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to split the work for; the target's cores if omitted.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A batch for passes that need data (.npy, .npz, .safetensors); may be repeated."),
    ] = None,
    tune: Annotated[
        int, typer.Option(min=0, help="Kernel candidates to measure first; `tersor tune` shows how it goes on.")
    ] = 0,
    log_dir: LogDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model to a file that `tersor run`, `tersor bench` and tersor.load() take.

    \b
    Examples:
      tersor compile model.pt2 -o model.tersor
      tersor compile package.module:factory --target x86:znver4 -p O2 -o model.tersor
      tersor compile old.tersor -o new.tersor    (again, from the graph that it contains)
    """
    from .report import describe_kernels, describe_model, passes_table, progress
    from .targets.artifact import check_output

    check_output(output)
    with progress() as shown:
        executable, _ = _compile(model, target, pipeline, threads, data or (), shown.begin, tune=tune, log_dir=log_dir)
        shown.begin("write")
        executable.save(output)
    size = output.stat().st_size
    if as_json:
        result = {"output": str(output), "bytes": size, "model": describe_model(executable.info)}
        _print_json(result | {"passes": executable.report.to_json(), "seconds": shown.seconds})
        return
    console = Console()
    console.print(passes_table(executable.report))
    console.print(f"{executable!r}: {describe_kernels(executable.info)}", highlight=False, soft_wrap=True)
    console.print(f"wrote {output} ({size / 2**20:.1f} MiB)", highlight=False, soft_wrap=True)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(metavar="FILE.tersor", help="A compiled model.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", help=".npy: the next input; .npz, .safetensors: inputs by name. May be repeated."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write outputs: .npy, .npz or .safetensors.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a compiled model on arrays from files.

    \b
    Examples:
      tersor run model.tersor --input x.npy
      tersor run model.tersor --input ids.npy --input mask.npy --output y.npy
      tersor run model.tersor --input batch.npz --output y.safetensors --threads 1
    """
    from .report import describe_outputs, outputs_table
    from .targets import load
    from .targets.array_files import check_output, read_inputs, write_outputs

    executable = load(model, threads=threads)
    ports = executable.info.outputs
    if output is not None:
        check_output(output, ports)
    result = executable(*read_inputs(inputs or (), executable.info.inputs))
    outputs = result if isinstance(result, tuple) else (result,)
    if output is not None:
        write_outputs(output, outputs, ports)
    if as_json:
        written = None if output is None else str(output)
        _print_json({"outputs": describe_outputs(ports, outputs), "output": written})
        return
    Console().print(outputs_table(ports, outputs))


@app.command()
def bench(
    model: ModelArgument,
    against: Annotated[
        str, typer.Option(help="Runtimes to compare with: torch, torch-compile, onnxruntime, openvino.")
    ] = "",
    target: TargetOption = "x86:native",
    pipeline: PipelineOption = "O3",
    threads: ThreadsOption = None,
    repeat: Annotated[int, typer.Option(min=1, help="Calls to time at least.")] = 50,
    kernels: Annotated[bool, typer.Option("--kernels", help="Time each kernel too.")] = False,
    log_dir: LogDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a model, compiled now or before, on random inputs.

    \b
    Examples:
      tersor bench model.tersor --threads 1
      tersor bench model.pt2 --kernels
      tersor bench package.module:factory --against torch,onnxruntime,openvino
    """
    from .peers import check_peers, compare_with_peers
    from .report import comparison_table, describe_model, kernels_table, progress
    from .targets import load
    from .targets.artifact import is_artifact

    peers = [name.strip() for name in against.split(",") if name.strip()]
    with progress() as shown:
        if peers:
            check_peers(peers)
        if is_artifact(model):
            shown.begin("load")
            executable, loaded = load(model), None
        else:
            executable, loaded = _compile(model, target, pipeline, threads, (), shown.begin, log_dir=log_dir)
        if threads is not None:
            executable.threads = threads
        shown.begin("time")
        result = executable.benchmark(repeat=repeat, kernels=kernels)
        comparison = None
        if peers and loaded is not None:
            comparison = compare_with_peers(executable, loaded.model, loaded.example_inputs, peers, shown.begin)
        elif peers:
            inputs = executable.random_inputs()
            comparison = compare_with_peers(executable, executable.graph, inputs, peers, shown.begin)
    if as_json:
        tables = {"comparison": None if comparison is None else asdict(comparison)}
        _print_json({"model": describe_model(executable.info), "latency": result.to_json()} | tables)
        return
    console = Console()
    console.print(f"{executable!r}: {result}", highlight=False, soft_wrap=True)
    if kernels:
        console.print(kernels_table(result.kernels))
    if comparison is not None:
        console.print(comparison_table(comparison))


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """List the machines that models can be compiled for; x86:native is the one that this runs on.

    \b
    Examples:
      tersor targets
      tersor targets --json
    """
    from .ir import TersorError
    from .report import targets_table
    from .targets import detect_host, list_targets

    try:
        host = detect_host()
    except TersorError:  # a machine that nothing can be compiled for natively
        host = None
    known = list_targets()
    if as_json:
        _print_json({"targets": [asdict(one) for one in known], "native": None if host is None else asdict(host)})
        return
    Console().print(targets_table(known, host))


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
    from .passes import as_pipeline
    from .passes.driver import OptRequest, run_bisect, run_opt
    from .report import describe_bisection, describe_outcome

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
    if bisect:
        culprit = run_bisect(request)
        if as_json:
            _print_json({"pipeline": str(as_pipeline(pipeline)), "culprit": describe_bisection(culprit)})
        else:
            print(culprit if culprit is not None else f"all rewrites of {str(as_pipeline(pipeline))!r} are right")
        raise typer.Exit(0 if culprit is None else 1)
    outcome = run_opt(request)
    if as_json:
        _print_json({"pipeline": str(as_pipeline(pipeline)), **describe_outcome(outcome, output)})
    elif output is None:
        print(outcome.graph, end="")


@app.command()
def passes(plugin: PluginOption = None, as_json: JsonOption = False) -> None:
    """List the passes with their options, and the presets.

    \b
    Examples:
      tersor passes
      tersor passes --json
    """
    from .passes import PRESETS, list_passes
    from .passes.driver import import_plugins
    from .report import describe_passes, known_passes_table, presets_table

    import_plugins(plugin or ())
    if as_json:
        _print_json({"passes": describe_passes(list_passes()), "presets": PRESETS})
    else:
        Console().print(known_passes_table(list_passes()), presets_table(PRESETS))


def _compile(
    model: str,
    target: str,
    pipeline: str,
    threads: int | None,
    data: Sequence[Path],
    begin: Callable[[str], None],
    *,
    tune: int = 0,
    log_dir: Path | None = None,
) -> tuple[Executable, LoadedModel | None]:
    """Compile what MODEL names; also returns the model itself, unless it is the graph of an artifact."""
    from .compiler import compile_in_stages
    from .frontend import load_model
    from .targets import resolve_target
    from .targets.array_files import read_inputs
    from .targets.artifact import is_artifact, load_graph

    record = resolve_target(target)
    if threads is not None:
        record = replace(record, cores=threads)
    begin("load")
    loaded = None if is_artifact(model) else load_model(model)
    graph = load_graph(model) if loaded is None else loaded.to_graph()
    batches = [read_inputs([path], graph.inputs) for path in data] or None
    executable = compile_in_stages(
        graph,
        None,
        target=record,
        pipeline=pipeline,
        calibration=batches,
        threads=None,
        begin=begin,
        tune=tune,
        log_dir=log_dir,
    )
    return executable, loaded


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


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
