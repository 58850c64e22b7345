"""A graph to a file of PyTorch, under the names of the user's own module: a program, or the numbers alone."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..ir import Graph, TersorError
from ..ir.files import check_writable, replacing
from ..ir.foreign import UserObject
from ..ir.weights import write_tensors
from .load import example_tensors
from .quiet import quiet
from .to_torch import GraphModule

_PROGRAM, _STATE = ".pt2", ".safetensors"


def check_module_path(path: str | Path) -> None:
    """Raise TersorError unless `save_module` can write ``path``."""
    if Path(path).suffix not in (_PROGRAM, _STATE):
        raise TersorError(
            f"{path}: a module is written as {_PROGRAM} (a program of torch.export) or {_STATE} (its state alone); give"
            " the file one of these suffixes"
        )
    check_writable(path)


def save_module(graph: Graph, path: str | Path) -> None:
    """Write ``graph.to_torch()``.

    Parameters
    ----------
    graph
        Where it has symbols, the program has the shapes of their hints. One of 8-bit integers calls the operator
        ``tersor::op``, which is known where ``tersor`` was imported.
    path
        ``.pt2``: a program that `torch.export.load`, `tersor.from_torch` and the command line read, called like the
        user's module. ``.safetensors``: its ``state_dict()``.

    Raises
    ------
    TersorError
        For another suffix, or when the file cannot be written.
    """
    check_module_path(path)
    module = GraphModule(graph)
    program = _export(module, graph) if Path(path).suffix == _PROGRAM else None
    with replacing(path) as fresh:
        if program is None:
            write_tensors(fresh, module.state_dict())
            return
        with fresh.open("wb") as file:
            torch.export.save(program, file)


def _export(module: GraphModule, graph: Graph) -> ExportedProgram:
    inputs = iter(example_tensors([value.type for value in graph.user_inputs]))
    args: tuple[UserObject, ...] = tuple(inputs)
    kwargs: dict[str, UserObject] = {}
    if graph.structure is not None:
        structure, leaves = graph.structure.with_classes(), iter(args)
        args, kwargs = structure.positional.build(leaves), structure.keyword.build(leaves)
        names = [str(name) for name in structure.positional.keys]
        if all(name.isidentifier() for name in names):
            _name_arguments(module, names)
    with quiet():
        return torch.export.export(module, args, kwargs)


def _name_arguments(module: GraphModule, names: list[str]) -> None:
    """Let the module show the parameters of the user's module, whose names the program's inputs then have."""

    def forward(*args: UserObject, **kwargs: UserObject) -> UserObject:
        return GraphModule.forward(module, *args, **kwargs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    others = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    vars(forward)["__signature__"] = inspect.Signature([*parameters, others])
    vars(module)["forward"] = forward
