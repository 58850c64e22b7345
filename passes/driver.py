"""What ``tersor opt`` and ``tersor passes`` do: read, run or bisect, write, report."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..ir import Graph, TersorError, load_ir, save_ir, weights_loaded
from . import bisect as bisect_passes
from .instruments import CheckEach, DumpEach, Instrument, PrintIR, Reproducer, Timing, VerifyEach, When
from .instruments.base import write_text
from .manager import PassManager
from .pipeline import PRESETS, as_pipeline
from .registry import Option, list_passes


@dataclass(frozen=True)
class OptRequest:
    """The options of ``tersor opt``, as `tersor.cli.opt` documents them."""

    source: Path
    pipeline: str
    output: Path | None = None
    verify_each: bool = False
    check_each: bool = False
    tolerance: float | None = None
    inputs: Path | None = None
    print_before_all: bool = False
    print_after_all: bool = False
    print_on_change: bool = False
    dump_dir: Path | None = None
    timing: bool = False
    bisect_limit: int | None = None
    reproducer_dir: Path | None = None
    plugins: tuple[str, ...] = ()


def run_opt(request: OptRequest, as_json: bool) -> int:
    """Run the pipeline, and write the result to the output file or to stdout; returns the exit code."""
    import_plugins(request.plugins)
    pipeline = as_pipeline(request.pipeline)
    graph = load_ir(request.source, require_weights=False)
    instruments = tuple(_instruments(request, graph))
    outcome = PassManager(pipeline, instruments, request.bisect_limit).run(graph)
    if request.output is not None:
        write_graph(outcome.graph, request.output)
    if as_json:
        result: dict[str, Any] = {"pipeline": str(pipeline), "passes": outcome.report.to_json()}
        result |= {"output": str(request.output)} if request.output is not None else {"ir": str(outcome.graph)}
        print(json.dumps(result, indent=2))
    elif request.output is None:
        print(outcome.graph, end="")
    return 0


def run_bisect(request: OptRequest, as_json: bool) -> int:
    """Find the first rewrite that goes wrong and print it; returns 1 if there is one, 0 if all is right."""
    import_plugins(request.plugins)
    pipeline = as_pipeline(request.pipeline)
    graph = load_ir(request.source)
    inputs = None if request.inputs is None else read_inputs(graph, request.inputs)
    culprit = bisect_passes(graph, pipeline, inputs=inputs, tolerance=request.tolerance)
    if as_json:
        found = None if culprit is None else {**vars(culprit), "pass": culprit.one}
        if found is not None:
            del found["one"]
        print(json.dumps({"pipeline": str(pipeline), "culprit": found}, indent=2))
    else:
        print(culprit if culprit is not None else f"all rewrites of {str(pipeline)!r} are right")
    return 0 if culprit is None else 1


def import_plugins(modules: Iterable[str]) -> None:
    """Import Python modules that register passes; raises TersorError for one that does not exist."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise TersorError(
                f"plugin {module!r} cannot be imported ({error}); is its folder on PYTHONPATH?"
            ) from error


def read_inputs(graph: Graph, path: Path) -> tuple[torch.Tensor, ...]:
    """Tensors by input name from a safetensors file; raises TersorError when one is missing."""
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise TersorError(f"{path}: not a readable safetensors file ({error})") from error
    missing = [value.name for value in graph.inputs if value.name not in tensors]
    if missing:
        raise TersorError(f"{path}: has no tensor for input {missing[0]!r}, only {', '.join(sorted(tensors))}")
    return tuple(tensors[value.name] for value in graph.inputs)


def write_graph(graph: Graph, path: Path) -> None:
    """Write IR text, and its weights if they are loaded; raises TersorError when that is not possible."""
    write_text(path, str(graph))
    if not weights_loaded(graph):
        return
    try:
        save_ir(graph, path)
    except (OSError, SafetensorError) as error:
        raise TersorError(f"{path}: cannot be written ({error}); choose a writable place") from error


def describe_passes() -> dict[str, Any]:
    """All passes and presets as JSON types."""
    return {
        "passes": [
            {
                "name": info.name,
                "summary": info.summary,
                "exactness": info.exactness.value,
                "options": [_describe_option(option) for option in info.options],
            }
            for info in list_passes()
        ],
        "presets": PRESETS,
    }


def _describe_option(option: Option) -> dict[str, Any]:
    default = option.default.value if isinstance(option.default, Enum) else option.default
    return {"name": option.name, "type": option.type, "default": default, "required": option.required}


def print_passes(console: Console | None = None) -> None:
    """Print the tables of passes and of presets."""
    console = console if console is not None else Console()
    table = Table("pass", "keeps", "options", "summary")
    for info in list_passes():
        options = (f"{o.name}: {o.type}" + ("" if o.required else f" = {o.default}") for o in info.options)
        table.add_row(info.name, info.exactness.value, "\n".join(options), info.summary)
    presets = Table("preset", "stands for")
    for name, text in PRESETS.items():
        presets.add_row(name, text or "nothing")
    console.print(table)
    console.print(presets)


def _instruments(request: OptRequest, graph: Graph) -> Iterable[Instrument]:
    if request.verify_each:
        yield VerifyEach()
    if request.check_each:
        inputs = None if request.inputs is None else read_inputs(graph, request.inputs)
        yield CheckEach(inputs, tolerance=request.tolerance)
    for wanted, when in (
        (request.print_before_all, When.BEFORE_ALL),
        (request.print_after_all, When.AFTER_ALL),
        (request.print_on_change, When.ON_CHANGE),
    ):
        if wanted:
            yield PrintIR(when)
    if request.dump_dir is not None:
        yield DumpEach(request.dump_dir)
    if request.timing:
        yield Timing()
    if request.reproducer_dir is not None:
        yield Reproducer(request.reproducer_dir)
