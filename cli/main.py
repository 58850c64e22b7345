"""The command line: declares commands, prints results, and turns every user's mistake into one line and exit code 2.

Heavy modules are imported inside of the commands, so that ``tersor --help`` is quick.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from rich.console import Console

from .analyze import analyze
from .cache import cache
from .compress import compress
from .log import log
from .opt import opt
from .options import (
    AtOption,
    CacheOption,
    CheckOption,
    ConstantOption,
    DataOption,
    DynamicOption,
    EvaluateOption,
    ExitsOption,
    JsonOption,
    LogDirOption,
    ModelArgument,
    PipelineOption,
    PluginOption,
    ShapeOption,
    SplitOption,
    TargetOption,
    ThreadsOption,
    load_named,
    print_json,
    read_exits,
    read_numbers,
)
from .rpc import rpc_server, rpc_tracker
from .tune import tune

if TYPE_CHECKING:
    from ..compiler import CompileOptions
    from ..frontend import LoadedModel
    from ..targets import Executable
    from ..targets.runtime.exits import EarlyExits

# What the operating system refuses through no fault of this program.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG}

MAKE, MEASURE, LOOK, TUNE, SERVE = "Make", "Measure", "Look inside", "Tune", "Serve other machines"


class _Grouped(typer.core.TyperGroup):
    """Help that groups commands by what they are for, with the first sentence of each."""

    def format_commands(self, context: typer.Context, formatter: Any) -> None:
        for panel in (MAKE, MEASURE, LOOK, TUNE, SERVE):
            members = [
                one for one in sorted(self.commands.items()) if getattr(one[1], "rich_help_panel", None) == panel
            ]
            with formatter.section(panel):
                formatter.write_dl([(name, _first_sentence(command.help or "")) for name, command in members])


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".") + "."


app = typer.Typer(
    name="tersor",
    cls=_Grouped,
    help="Compiler-style graph optimization for PyTorch models, with every speedup measured. "
    "Kernels are chosen by analytic models, and by measurements where there are any.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command(rich_help_panel=MAKE)(compress)
app.command(rich_help_panel=LOOK)(opt)
app.add_typer(analyze, rich_help_panel=LOOK)
app.add_typer(cache, rich_help_panel=LOOK)
app.command(rich_help_panel=TUNE)(tune)
app.add_typer(log, rich_help_panel=TUNE)
app.command(rich_help_panel=SERVE)(rpc_tracker)
app.command(rich_help_panel=SERVE)(rpc_server)


@app.command(rich_help_panel=MAKE)
def compile(
    model: ModelArgument,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="A folder, or a .tar.gz, to write that runs without Python: beside --output, or instead."),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(help="For --bundle: a folder with TVM's libraries for the target; downloaded if omitted."),
    ] = None,
    target: TargetOption = "x86:native",
    pipeline: PipelineOption = "O3",
    threads: SplitOption = None,
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    dynamic: DynamicOption = None,
    at: AtOption = None,
    exits: ExitsOption = None,
    data: DataOption = None,
    evaluate: EvaluateOption = None,
    tune: Annotated[
        int, typer.Option(min=0, help="Kernel candidates to measure first; `tersor tune` shows the progress.")
    ] = 0,
    log_dir: LogDirOption = None,
    check: CheckOption = True,
    cache: CacheOption = True,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model to a file that `tersor run`, `tersor bench` and tersor.load() take.

    \b
    Examples:
      tersor compile model.pt2 -o model.tersor
      tersor compile package.module:factory --target x86:znver4 -p O2 -o model.tersor
      tersor compile model.onnx --shape x=1,3,224,224 -o model.tersor
      tersor compile nets:make --dynamic x=batch,3,224,224 --at batch=1 --at batch=8 -o model.tersor
      tersor compile model.onnx --dynamic x=batch,3,32*h,32*w --at batch=1,h=7,w=7 -o model.tersor
      tersor compile old.tersor -o new.tersor    (again, from the graph that it contains)
      tersor compile model.pt2 --target arm:cortex-a72 --bundle model-a72.tar.gz
    """
    from ..compiler import CompileOptions
    from ..evaluation import open_evaluation
    from ..ir import TersorError
    from ..ir.files import check_writable
    from ..targets.packaging.bundle import check_bundle_output
    from .opt_driver import import_plugins
    from .tables import describe_kernels, describe_model, print_precisions, progress

    if output is None and bundle is None:
        raise TersorError("nothing to write: give --output FILE.tersor, --bundle DIR, or both")
    if runtime is not None and bundle is None:
        raise TersorError("--runtime is for bundles: give --bundle DIR too")
    if output is not None:
        check_writable(output)
    if bundle is not None:
        check_bundle_output(bundle)
    import_plugins(plugin or ())
    evaluation = open_evaluation(evaluate)
    options = CompileOptions(
        target, pipeline, tune=tune, log_dir=log_dir, threads=threads, check=check, evaluate=evaluation, cache=cache
    )
    with progress() as shown:
        executable, _ = _compile(
            model, options, data or (), shown.begin, shape, constant, dynamic, at, read_exits(exits)
        )
        shown.begin("write")
        if output is not None:
            executable.save(output)
        if bundle is not None:
            executable.save_bundle(bundle, runtime=runtime)
    written = {str(path): _size(path) for path in (output, bundle) if path is not None}
    if as_json:
        names = {"output": None if output is None else str(output), "bundle": None if bundle is None else str(bundle)}
        result = names | {"bytes": sum(written.values()), "model": describe_model(executable.info)}
        agreement = None if executable.report.agreement is None else executable.report.agreement.to_json()
        print_json(result | {"passes": executable.report.to_json(), "agreement": agreement, "seconds": shown.seconds})
        return
    console = Console(markup=False)
    print(executable.report)
    print_precisions(executable.report, verbose=False)
    console.print(f"{executable!r}: {describe_kernels(executable.info)}", highlight=False, soft_wrap=True)
    if executable.report.agreement is not None:
        console.print(str(executable.report.agreement), highlight=False, soft_wrap=True)
    for path, size in written.items():
        console.print(f"wrote {path} ({size / 2**20:.1f} MiB)", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=MEASURE)
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
    from ..targets import load
    from ..targets.runtime.array_files import check_output, read_inputs, write_outputs
    from .tables import describe_outputs, outputs_table, print_table

    executable = load(model, threads=threads)
    ports = executable.info.user_outputs
    if output is not None:
        check_output(output, ports)
    outputs = executable.flat(*read_inputs(inputs or (), executable.info.user_inputs))[: len(ports)]
    ports = tuple(
        replace(port, type=port.type.with_shape(tuple(one.shape))) for port, one in zip(ports, outputs, strict=True)
    )  # which may be dynamic
    if output is not None:
        write_outputs(output, outputs, ports)
    if as_json:
        written = None if output is None else str(output)
        print_json({"outputs": describe_outputs(ports, outputs), "output": written})
        return
    print_table(outputs_table(ports, outputs))


@app.command(rich_help_panel=MEASURE)
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
    shape: ShapeOption = None,
    constant: ConstantOption = None,
    data: DataOption = None,
    log_dir: LogDirOption = None,
    check: CheckOption = True,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a model, compiled now or before, on random inputs.

    \b
    Examples:
      tersor bench model.tersor --threads 1
      tersor bench model.pt2 --kernels
      tersor bench package.module:factory --against torch,onnxruntime,openvino
    """
    from ..compiler import CompileOptions
    from ..targets import load
    from ..targets.packaging.artifact import is_artifact
    from .opt_driver import import_plugins
    from .peers import check_peers, compare_with_peers
    from .tables import comparison_table, describe_model, kernels_table, print_table, progress

    import_plugins(plugin or ())
    peers = [name.strip() for name in against.split(",") if name.strip()]
    with progress() as shown:
        if peers:
            check_peers(peers)
        if is_artifact(model):
            shown.begin("load")
            executable, loaded = load(model), None
        else:
            options = CompileOptions(target, pipeline, log_dir=log_dir, threads=threads, check=check)
            executable, loaded = _compile(model, options, data or (), shown.begin, shape, constant)
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
        print_json({"model": describe_model(executable.info), "latency": result.to_json()} | tables)
        return
    console = Console(markup=False)
    console.print(f"{executable!r}: {result}", highlight=False, soft_wrap=True)
    if kernels:
        print_table(kernels_table(result.kernels))
    if comparison is not None:
        print_table(comparison_table(comparison))


@app.command(rich_help_panel=LOOK)
def targets(as_json: JsonOption = False) -> None:
    """List the machines that models can be compiled for; x86:native, or arm:native, is the one that this runs on.

    \b
    Examples:
      tersor targets
      tersor targets --json
    """
    from ..ir import TersorError
    from ..targets import detect_host, list_targets
    from .tables import print_table, targets_table

    try:
        host = detect_host()
    except TersorError:  # a machine that nothing can be compiled for natively
        host = None
    known = list_targets()
    if as_json:
        print_json({"targets": [asdict(one) for one in known], "native": None if host is None else asdict(host)})
        return
    print_table(targets_table(known, host))


@app.command(rich_help_panel=LOOK)
def passes(
    name: Annotated[str | None, typer.Argument(help="Show one pass, with its options and an example.")] = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the passes by what they are for, and the presets; or show one pass.

    \b
    Examples:
      tersor passes
      tersor passes low-rank
      tersor passes --json
    """
    from ..passes import PRESETS, Pipeline, find_pass, list_passes
    from ..passes.registry import describe_pass
    from .opt_driver import import_plugins
    from .tables import describe_passes, known_passes_text, pass_text

    import_plugins(plugin or ())
    kind = None if name is None else find_pass(name)
    known = list_passes() if kind is None else (describe_pass(kind),)
    if as_json:
        print_json({"passes": describe_passes(known), "presets": PRESETS})
    elif kind is None:
        print(known_passes_text(known, PRESETS))
    else:
        print(pass_text(known[0], str(Pipeline(kind().steps)) if not any(o.required for o in known[0].options) else ""))


def _compile(
    model: str,
    options: CompileOptions,
    data: Sequence[str],
    begin: Callable[[str], None],
    shapes: Sequence[str] | None,
    constants: Sequence[str] | None,
    dynamic: Sequence[str] | None = None,
    at: Sequence[str] | None = None,
    exits: EarlyExits | None = None,
) -> tuple[Executable, LoadedModel | None]:
    """Compile what MODEL names; also returns the model itself, unless it is the graph of an artifact."""
    from ..checking import Reference
    from ..compiler import compile_for_shapes, compile_in_stages, compile_with_exits
    from ..compression.data import open_data
    from ..ir import TersorError
    from ..passes.manager import check_needs

    check_needs(options.passes, data=bool(data), score=options.evaluate is not None)
    begin("load")
    wanted = read_numbers(at)
    if dynamic and not wanted and Path(model).suffix == ".onnx":
        raise TersorError("say which shapes to compile programs for, for example --at batch=1")
    graph, loaded = load_named(model, shapes, constants, dynamic, next(iter(wanted), None))
    source, inputs = (graph, None) if loaded is None else (loaded.model, loaded.example_inputs)
    options = replace(options, calibration=open_data(data, graph))
    if exits is not None:
        example = Reference.of(source, graph, inputs) if options.check else None
        return compile_with_exits(graph, options, exits, reference=example, begin=begin), loaded
    if graph.symbols:
        return compile_for_shapes(graph, options, wanted, Reference.of(source, graph, inputs), begin=begin), loaded
    if wanted:
        raise TersorError(
            f"--at is for models with dynamic shapes, and {model} has none; say what varies by --dynamic, or when "
            "exporting it"
        )
    reference = Reference.of(source, graph, inputs) if options.check else None
    return compile_in_stages(graph, options, reference=reference, begin=begin), loaded


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _leave_abandoned_call(code: object) -> None:
    """End the process at once where an interrupt has left a native call behind, which Python would wait for."""
    if threading.active_count() == 1:
        return
    from ..targets.codegen.interruptible import is_call_running

    if is_call_running():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 2 on a user's mistake, 1 when a search found something wrong."""
    # What ends jobs (`timeout`, a batch system) is like Ctrl-C: what was reached is kept, temporary files are not.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    formatted, warnings.formatwarning = warnings.formatwarning, _warning
    try:
        try:
            app(arguments)
        finally:
            sys.stdout.flush()  # else a full disk is met when nobody can say so any more
    except BrokenPipeError:  # whoever closed it knows
        _abandon_stdout()
        raise SystemExit(1) from None
    except Exception as error:  # the one error boundary
        message = _one_line(error)
        if message is None:
            raise
        _abandon_stdout()
        print(f"tersor: {message}", file=sys.stderr)
        raise SystemExit(2) from error
    except SystemExit as end:
        _leave_abandoned_call(end.code)
        raise
    finally:
        warnings.formatwarning = formatted
        signal.signal(signal.SIGTERM, previous)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What is printed of a warning: of our own one line, as of mistakes; of others also where they come from."""
    from ..ir import TersorWarning

    text = " ".join(str(message).split())
    return f"tersor: {text}\n" if issubclass(category, TersorWarning) else f"{filename}:{lineno}: {text}\n"


def _one_line(error: Exception) -> str | None:
    """What to tell about a mistake of the user's or a refusal of the operating system; None for errors of our own."""
    from ..ir import TersorError

    if isinstance(error, TersorError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _NO_ROOM | _NO_ACCESS:
        return f"{error.filename or 'the output'}: {error.strerror}; make room, or choose another place"
    return None


def _abandon_stdout() -> None:
    """Let the interpreter end without another attempt to write what could not be written."""
    with suppress(OSError):  # there is no file behind it
        sys.stdout.flush()
        return
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
