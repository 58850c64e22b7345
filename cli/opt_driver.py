"""What ``tersor opt`` reads and writes, and what its passes may look at."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..ir import Graph, TersorError, load_ir, save_ir, weights_loaded
from ..ir.files import check_writable, make_folder, write_text
from ..ir.weights import read_tensors
from ..passes import Latency, Pipeline
from ..passes.base import Machine
from .options import read_constants, read_shapes


@dataclass(frozen=True)
class Surroundings:
    """What passes may look at besides the graph (see `PassContext`).

    Attributes
    ----------
    target
        The machine to optimize for, or None.
    calibration
        Batches of inputs, or None.
    latency
        Measures for the pipeline, or None.
    options
        Of ``tersor opt`` that bring these back, for reproducers.
    """

    target: Machine | None
    calibration: Iterable[Sequence[torch.Tensor]] | None
    latency: Latency | None
    options: tuple[str, ...]


def read_graph(
    path: Path, shapes: Sequence[str] | None, constants: Sequence[str] | None, *, require_weights: bool
) -> Graph:
    """The graph of an ONNX file, or of IR text, whose weights may be missing unless they are required."""
    by_name, numbers = read_shapes(str(path), shapes), read_constants(str(path), constants)
    if path.suffix != ".onnx" or not path.is_file():
        return load_ir(path, require_weights=require_weights)
    from ..frontend import from_onnx

    return from_onnx(path, by_name, numbers)


def surroundings(graph: Graph, pipeline: Pipeline, target: str | None, data: Sequence[str]) -> Surroundings:
    """What ``--target`` and ``--data`` name; what is not asked for is not imported."""
    calibration, machine, latency = None, None, None
    options = [part for name in data for part in ("--data", name)]
    if target is not None:
        from ..measuring import latency_of
        from ..targets import resolve_target
        from ..targets.codegen.kernel_cache import KernelCache

        machine = resolve_target(target)
        latency = latency_of(pipeline, machine, cache=KernelCache.of_user())
        options = ["--target", target, *options]
    if data:
        from ..compression.data import open_data

        calibration = open_data(data, graph)
    return Surroundings(machine, calibration, latency, tuple(options))


def check_output(path: Path) -> None:
    """Make the folder of an output; raises TersorError when the output cannot be written."""
    make_folder(path.parent)
    check_writable(path)


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
    missing = [value.name for value in graph.user_inputs if value.name not in tensors]
    if missing:
        raise TersorError(f"{path}: has no tensor for input {missing[0]!r}, only {', '.join(sorted(tensors))}")
    return tuple(tensors[value.name] for value in graph.user_inputs)


def write_graph(graph: Graph, path: Path) -> None:
    """Write IR text, with weights if they are loaded, or an ONNX file; raises TersorError when that is not possible."""
    if path.suffix == ".onnx":
        graph.to_onnx(path)
    elif weights_loaded(graph):
        save_ir(graph, path)
    else:
        write_text(path, str(graph))
