"""Reading a ``.pt2`` archive without running anything that it contains.

`torch.export.load` unpickles example inputs and special tensors, maps compiled code, and evaluates the formulas of
dynamic shapes. So the archive is inspected first, through the reader that PyTorch itself uses, and refused unless it
consists of a graph of ATen operators, raw weights, and example inputs that the restricted unpickler (``weights_only``)
accepts.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from ..ir import TersorError
from .export import tracing

_GRAPHS = "models/"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_SAMPLES = "data/sample_inputs/"
_COMPILED = ("data/aotinductor/", "data/executorch/", "data/mtia/")
_PASSIVE_TARGETS = ("torch.ops.", "_operator.getitem")
_DAMAGE = (
    RuntimeError,
    AssertionError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)  # members missing or malformed
_AGAIN = "export it again with this version of PyTorch"


def load_program(path: Path) -> ExportedProgram:
    """Load an exported program.

    Raises
    ------
    TersorError
        When the archive is damaged or from another version, holds more than one program, or anything that could run
        code when it is loaded.
    """
    with path.open("rb") as file:
        try:
            reader = PT2ArchiveReader(file)
            _inspect(path, reader)
        except _DAMAGE as error:
            raise TersorError(f"{path}: is damaged or not an exported program; {_AGAIN}") from error
        return _load(path, file)


def _load(path: Path, file: BinaryIO) -> ExportedProgram:
    file.seek(0)  # the same open file as was inspected
    try:
        with tracing():
            return torch.export.load(file)
    except Exception as error:  # the deserializer asserts, and raises errors of many kinds, on what it does not know
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TersorError(f"{path}: cannot be read as an exported program ({reason}); {_AGAIN}") from error


def _inspect(path: Path, reader: PT2ArchiveReader) -> None:
    names = reader.get_file_names()
    graphs = [name for name in names if name.startswith(_GRAPHS)]
    if graphs != [f"{_GRAPHS}model.json"]:
        raise TersorError(f"{path}: must hold one program, found {len(graphs)}; save it with torch.export.save")
    if any(name.startswith(_COMPILED) for name in names):
        raise TersorError(f"{path}: contains compiled code, which is refused; {_AGAIN} without compiling it")
    for folder in (_WEIGHTS, _CONSTANTS):
        if f"{folder}model.pt" in names:
            raise TersorError(f"{path}: is in an older format with pickled weights, which is refused; {_AGAIN}")
        config = f"{folder}model_{'weights' if folder == _WEIGHTS else 'constants'}_config.json"
        for name, payload in json.loads(reader.read_string(config))["config"].items():
            if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
                raise TersorError(
                    f"{path}: {name!r} is stored as a pickle, which can run code when loaded, so it is refused; "
                    "keep plain tensors in the model (not sparse, quantized or subclassed ones) and export it again"
                )
    _inspect_samples(path, reader.read_bytes(f"{_SAMPLES}model.pt"))
    _inspect_graph(path, json.loads(reader.read_string(graphs[0])))


def _inspect_samples(path: Path, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except pickle.UnpicklingError as error:
        raise TersorError(
            f"{path}: its example inputs are a pickle of more than tensors, which can run code when loaded, so it is "
            "refused; export the model with plain tensors as inputs"
        ) from error


def _inspect_graph(path: Path, program: dict[str, Any]) -> None:
    for record in _records(program):
        if "expr_str" in record:
            raise TersorError(f"{path}: has dynamic shapes, which are not supported; export it without dynamic_shapes")
        target = record.get("target")
        if "inputs" in record and isinstance(target, str) and not target.startswith(_PASSIVE_TARGETS):
            raise TersorError(f"{path}: calls {target!r}, which is not an operator of PyTorch, so it is refused")


def _records(tree: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects in a tree."""
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
