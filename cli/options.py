"""Options that several commands share, and what they name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..frontend import LoadedModel
    from ..ir import Graph
    from ..ir.foreign import Json
    from ..targets.runtime.exits import EarlyExits

DimensionsOfInput = dict[int, str] | tuple[str | int, ...]  # names of some dimensions, or what all are

JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable results.")]
PluginOption = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="MODULE", help="Import a Python module that registers passes.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of one call; all usable cores if omitted.")]
SplitOption = Annotated[
    int | None, typer.Option(min=1, help="Threads to split the work for; the target's cores if omitted.")
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .pt2, .onnx, IR or .tersor file, or package.module:factory.")
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1,3,224,224", help="Shape of an ONNX file's input; one for each input."),
]
ConstantOption = Annotated[
    list[str] | None,
    typer.Option("--constant", metavar="NAME=16000", help="Fix an ONNX file's input, by one number or several."),
]
DynamicOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="NAME=batch,3,224,224",
        help="Extents that vary of an input of a module or an ONNX file, by name among those that do not; for each "
        "input that has any. A .pt2 file has its own, which get these names.",
    ),
]
AtOption = Annotated[
    list[str] | None,
    typer.Option(
        "--at", metavar="batch=8", help="Compile a program for this shape of a model with dynamic shapes; repeatable."
    ),
]
ExitsOption = Annotated[
    str | None,
    typer.Option(
        "--exits",
        metavar="0.9,0.8",
        help="The outputs are exits: the confidence from which on a call stops at each but the last; - for never.",
    ),
]
TargetOption = Annotated[str, typer.Option(help="Machine to compile for; see `tersor targets`.")]
PipelineOption = Annotated[str, typer.Option("-p", "--pipeline", help="Passes and presets, comma-separated.")]
LogDirOption = Annotated[
    Path | None, typer.Option(help="Folder of tuning records, used on top of those that ship with Tersor.")
]
CacheOption = Annotated[
    bool, typer.Option(help="Take kernels that were compiled before from the user's cache folder, and keep new ones.")
]
CheckOption = Annotated[
    bool, typer.Option(help="Run the program once beside the model on the example inputs, and compare.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOADER|FILE",
        help="Inputs for passes that need data: package.module:loader, a function that returns an iterable of batches, "
        "or a .npy, .npz or .safetensors file of one batch, which may be repeated.",
    ),
]
EvaluateOption = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FN", help="A function that takes the model and returns a number, larger for better."),
]


def read_shapes(model: str, given: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input name, from ``--shape``; raises TersorError where they make no sense."""
    from ..ir import TersorError

    if given and Path(model).suffix != ".onnx":
        raise TersorError(f"--shape is for ONNX files, whose inputs may have symbolic dimensions; {model} is none")
    shapes = {}
    for text in given or ():
        name, _, extents = text.rpartition("=")
        if not name or not re.fullmatch(r"[0-9]+(,[0-9]+)*", extents):
            raise TersorError(f"--shape {text}: must be NAME=EXTENT,EXTENT,…, for example x=1,3,224,224")
        shapes[name] = tuple(map(int, extents.split(",")))
    return shapes


def read_constants(model: str, given: Sequence[str] | None) -> dict[str, float | int | list[float | int]]:
    """Numbers by input name, from ``--constant``; raises TersorError where they make no sense."""
    from ..ir import TersorError

    if given and Path(model).suffix != ".onnx":
        raise TersorError(f"--constant is for inputs of ONNX files; {model} is none")
    constants: dict[str, float | int | list[float | int]] = {}
    for text in given or ():
        name, _, listed = text.rpartition("=")
        try:
            numbers = [float(one) if re.search(r"[.eEn]", one) else int(one) for one in listed.split(",")]
        except ValueError as error:
            raise TersorError(f"--constant {text}: must be NAME=NUMBER or NAME=NUMBER,NUMBER,…") from error
        if not name:
            raise TersorError(f"--constant {text}: must be NAME=NUMBER or NAME=NUMBER,NUMBER,…")
        constants[name] = numbers if len(numbers) > 1 else numbers[0]
    return constants


def read_dynamic(model: str, given: Sequence[str] | None) -> dict[str, DimensionsOfInput] | None:
    """Names of dynamic extents by input and dimension, from ``--dynamic``; raises TersorError if they make no sense."""
    from ..ir import TersorError

    suffix = Path(model).suffix
    if given and ":" not in model and suffix not in (".pt2", ".onnx"):
        raise TersorError(
            f"--dynamic is for package.module:factory, .pt2 and .onnx files; {model} has the shapes that it was saved "
            "with"
        )
    dynamic: dict[str, DimensionsOfInput] = {}
    for text in given or ():
        name, _, extents = text.rpartition("=")
        parts = extents.split(",")
        computed = suffix in (".pt2", ".onnx") and all(re.fullmatch(r"[\w+*-]+", part) for part in parts)
        if not name or not (computed or all(part.isdigit() or part.isidentifier() for part in parts)):
            raise TersorError(f"--dynamic {text}: must be NAME=EXTENT,EXTENT,…, for example x=batch,3,224,224")
        if suffix == ".onnx":  # all extents
            dynamic[name] = tuple(int(part) if part.isdigit() else part for part in parts)
        else:  # a program has its own, of which symbols alone get names
            dynamic[name] = {axis: part for axis, part in enumerate(parts) if part.isidentifier()}
    return dynamic or None


def check_dynamic(graph: Graph, given: Sequence[str] | None) -> None:
    """Raise TersorError unless the extents that ``--dynamic`` gives are those of the graph's inputs."""
    from ..ir import TersorError

    types = {value.name: value.type for value in graph.user_inputs}
    for text in given or ():
        name, _, extents = text.rpartition("=")
        if name in types and [str(extent) for extent in types[name].shape] != extents.split(","):
            raise TersorError(f"--dynamic {text}: the input is {types[name]} in the example or the file")


def read_numbers(given: Sequence[str] | None) -> list[dict[str, int]]:
    """Shapes from ``--at``, as numbers by name; raises TersorError where they make no sense."""
    from ..ir import TersorError

    shapes = []
    for text in given or ():
        parts = [part.partition("=")[::2] for part in text.split(",")]
        if not all(name and number.isdigit() for name, number in parts):
            raise TersorError(f"--at {text}: must be NAME=NUMBER or NAME=NUMBER,NAME=NUMBER, for example batch=8")
        shapes.append({name: int(number) for name, number in parts})
    return shapes


def read_exits(given: str | None) -> EarlyExits | None:
    """Exits from ``--exits``; raises TersorError where they make no sense."""
    from ..ir import TersorError
    from ..targets.runtime.exits import EarlyExits

    if given is None:
        return None
    try:
        return EarlyExits(tuple(None if part.strip() == "-" else float(part) for part in given.split(",")))
    except ValueError as error:
        raise TersorError(
            f"--exits {given}: must be numbers such as 0.9,0.8, or - for an exit that is not taken"
        ) from error


def load_named(
    model: str,
    shapes: Sequence[str] | None = None,
    constants: Sequence[str] | None = None,
    dynamic: Sequence[str] | None = None,
    hints: Mapping[str, int] | None = None,
) -> tuple[Graph, LoadedModel | None]:
    """The graph that MODEL names, and the model itself, unless it is the graph of an artifact.

    ``hints`` are numbers of dynamic extents of an ONNX file (see `from_onnx`).
    """
    from ..frontend import load_model
    from ..targets.packaging.artifact import is_artifact, load_graph

    by_name, numbers = read_shapes(model, shapes), read_constants(model, constants)
    dynamic_shapes = read_dynamic(model, dynamic)
    if is_artifact(model):
        return load_graph(model), None
    loaded = load_model(model, by_name, numbers, dynamic_shapes, hints)
    graph = loaded.to_graph(dynamic_shapes)
    check_dynamic(graph, dynamic)
    return graph, loaded


def print_json(value: Json) -> None:
    """Print machine-readable results."""
    print(json.dumps(value, indent=2))
