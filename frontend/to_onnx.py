"""IR to ONNX: a file of the graph as it is, in floating point or between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..ir import Graph, TersorError, Tree, Value, at_hints, shorten, weights_loaded
from ..ir.files import replacing
from .onnx import writers as _writers  # noqa: F401  (fills the table of writers)
from .onnx.writer import CODES, WRITERS, Writer

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 20, 9
_LARGEST = 1 << 31  # bytes that one protocol buffer holds
_PLACES_SHOWN = 3


def to_onnx(graph: Graph, path: str | Path) -> None:
    """Write a graph as an ONNX file, with its weights in it.

    Takes the package ``onnx`` (``pip install 'tersor[onnx]'``). A graph with symbols is written at their hints. The
    state of a model is an input and an output more.

    Parameters
    ----------
    path
        Where to write.

    Raises
    ------
    TersorError
        In one line that lists all ops that cannot be written; or when the package is missing, weights are not loaded,
        or the file would be above 2 GB.
    OutputError
        When the file cannot be written.
    """
    try:
        from onnx import checker
    except ImportError as error:
        raise TersorError("writing ONNX files takes the package onnx: pip install 'tersor[onnx]'") from error
    if not weights_loaded(graph):
        raise TersorError("the graph's weights are not loaded, so no ONNX file can be written")
    model = _model(at_hints(graph))
    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, RuntimeError, ValueError) as error:
        raise TersorError(f"the ONNX file would not be valid ({shorten(' '.join(str(error).split()), 300)})") from error
    with replacing(path) as fresh:
        fresh.write_bytes(model.SerializeToString())


Graph.register_to_onnx(to_onnx)


def _model(graph: Graph) -> onnx.ModelProto:
    from onnx import helper

    _check_ops(graph)
    writer = Writer()
    for value in graph.inputs:
        writer.bind(value, value.name)
    problems = writer.write(graph)
    if problems:
        raise TersorError(f"{graph.name} cannot be written as ONNX: {'; '.join(problems)}")
    names = _output_names(graph)
    taken = {*(value.name for value in graph.inputs), *writer.tensors}
    names = [name if name not in taken else f"{name}_output" for name in names]
    for value, name in zip(graph.outputs, names, strict=True):
        writer.nodes.append(helper.make_node("Identity", [writer.name(value)], [name]))
    if sum(tensor.nbytes for tensor in writer.tensors.values()) >= _LARGEST:
        raise TersorError(f"{graph.name} has more than 2 GB of weights, which one ONNX file cannot hold")
    used = {name for node in writer.nodes for name in node.input}
    tensors = [_tensor(name, numbers) for name, numbers in writer.tensors.items() if name in used]
    inputs = [_declared(value.name, value) for value in graph.inputs]
    outputs = [_declared(name, value) for name, value in zip(names, graph.outputs, strict=True)]
    proto = helper.make_graph(writer.nodes, graph.name, inputs, outputs, tensors)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(proto, opset_imports=[opset], ir_version=IR_VERSION, producer_name="tersor")


def _check_ops(graph: Graph) -> None:
    """Raise TersorError with the names of all ops that have no writer, and where they are."""
    places: dict[str, list[str]] = {}
    for part in graph.parts:
        for op in part.ops:
            if op.inputs and op.body is None and type(op) not in WRITERS:
                places.setdefault(op.name, []).append(op.location)
    if places:
        told = ", ".join(f"{name}{_shown(found)}" for name, found in places.items())
        raise TersorError(f"{graph.name} cannot be written as ONNX: it has ops without a writer, {told}")


def _shown(places: list[str]) -> str:
    distinct = [place for place in dict.fromkeys(places) if place]
    more = f" and {len(distinct) - _PLACES_SHOWN} more" if len(distinct) > _PLACES_SHOWN else ""
    return f" (at {', '.join(distinct[:_PLACES_SHOWN])}{more})" if distinct else ""


def _output_names(graph: Graph) -> list[str]:
    """The keys of a dict of tensors, if that is what the model returns; else numbered; then the new states."""
    tree: Tree | None = None if graph.structure is None else graph.structure.result
    count = len(graph.outputs) - len(graph.states)
    keys: Iterable[str | int] = range(count)
    if tree is not None and tree.kind == "dict" and all(child.kind == "tensor" for child in tree.children):
        keys = tree.keys
    own = [key if isinstance(key, str) else f"output{key}" for key in keys]
    return [*own, *(f"{id}.next" for id in graph.states)]


def _declared(name: str, value: Value) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, CODES[value.type.dtype.torch], [int(one) for one in value.shape])


def _tensor(name: str, numbers: torch.Tensor) -> onnx.TensorProto:
    from onnx import helper

    raw = numbers.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if numbers.numel() else b""
    return helper.make_tensor(name, CODES[numbers.dtype], list(numbers.shape), raw, raw=True)
