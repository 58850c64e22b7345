"""What ``tersor opt`` does: read, run or bisect, write. What it shows is made in `tersor.cli.tables`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ir import Graph, TersorError, load_ir, save_ir, weights_loaded
from ..ir.files import check_writable, make_folder, write_text
from ..ir.weights import read_tensors
from ..passes.base import Latency
from ..passes.bisect import Culprit, bisect
from ..passes.instruments import (
    CheckEach,
    DumpEach,
    Instrument,
    PassStages,
    PrintIR,
    Reproducer,
    Timing,
    VerifyEach,
    When,
)
from ..passes.manager import PassManager, PassOutcome
from ..passes.pipeline import Pipeline, as_pipeline


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


@dataclass(frozen=True)
class Surroundings:
    """What passes may look at besides the graph (see `PassContext`).

    Attributes
    ----------
    target
        The machine to optimize for, or None.
    calibration
        Makes batches of inputs for a graph, or None.
    latency
        Measures for a pipeline, or None.
    options
        Of ``tersor opt`` that bring these back, for reproducers.
    """

    target: Any = None
    calibration: Callable[[Graph], Iterable[Sequence[torch.Tensor]] | None] = lambda graph: None
    latency: Callable[[Pipeline], Latency | None] = lambda pipeline: None
    options: tuple[str, ...] = ()


def run_opt(
    request: OptRequest, given: Surroundings = Surroundings(), begin: Callable[[str], None] = lambda stage: None
) -> PassOutcome:
    """Run the pipeline, telling ``begin`` the name of each pass, and write the result if an output is asked for."""
    if request.output is not None:
        make_folder(request.output.parent)
        check_writable(request.output)
    import_plugins(request.plugins)
    pipeline = as_pipeline(request.pipeline)
    graph = load_ir(request.source, require_weights=False)
    instruments = (PassStages(begin), *_instruments(request, graph, given))
    manager = PassManager(pipeline, instruments, request.bisect_limit)
    outcome = manager.run(
        graph, target=given.target, calibration=given.calibration(graph), latency=given.latency(pipeline)
    )
    if request.output is not None:
        write_graph(outcome.graph, request.output)
    return outcome


def run_bisect(request: OptRequest, given: Surroundings = Surroundings()) -> Culprit | None:
    """Find the first rewrite that goes wrong; None if all is right. Nothing is timed: it would differ every time."""
    import_plugins(request.plugins)
    pipeline = as_pipeline(request.pipeline)
    graph = load_ir(request.source)
    inputs = None if request.inputs is None else read_inputs(graph, request.inputs)
    return bisect(
        graph,
        pipeline,
        inputs=inputs,
        target=given.target,
        calibration=given.calibration(graph),
        tolerance=request.tolerance,
    )


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
    tensors = read_tensors(path)
    missing = [value.name for value in graph.inputs if value.name not in tensors]
    if missing:
        raise TersorError(f"{path}: has no tensor for input {missing[0]!r}, only {', '.join(sorted(tensors))}")
    return tuple(tensors[value.name] for value in graph.inputs)


def write_graph(graph: Graph, path: Path) -> None:
    """Write IR text, and its weights if they are loaded; raises TersorError when that is not possible."""
    if weights_loaded(graph):
        save_ir(graph, path)
    else:
        write_text(path, str(graph))


def _instruments(request: OptRequest, graph: Graph, given: Surroundings) -> Iterable[Instrument]:
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
        yield Reproducer(request.reproducer_dir, given.options)
