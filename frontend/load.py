"""Loading the model that a command line names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ..ir import DType, Graph, TensorType, TersorError, at_hints, check_memory, load_ir
from ..ir.foreign import UserObject
from .archive import load_program
from .export import Arguments, ExampleInputs, split_inputs
from .factory import call_factory
from .from_onnx import from_onnx
from .from_torch import from_torch
from .onnx.file import Constants
from .program_json import AGAIN

_EXPORT_HINT = "save the model with torch.export.save(torch.export.export(model.eval(), example_inputs), 'model.pt2')"
_PICKLE = b"\x80"  # the first byte of every binary pickle
_START_BYTES = 1 << 16  # within which IR text must begin, after comments
_OLDER, _OLDER_BYTES = "serialized_exported_program.json", 1 << 26
_IR_TEXT = re.compile(rb"\s*(?:#[^\n]*\n\s*)*(?:# tersor ir|graph @)")
_PROGRAM, _TEXT, _COMPILED, _ONNX = "an exported program", "IR text", "a compiled model", "an ONNX file"
_SUFFIXES = {".pt2": _PROGRAM, ".ir": _TEXT, ".tersor": _COMPILED, ".onnx": _ONNX}
_KNOWN = "a .pt2 file, an .onnx file, an IR text file or package.module:factory"


@dataclass(frozen=True)
class LoadedModel:
    """A model with inputs that it can be run on.

    Attributes
    ----------
    model
        A module or an exported program, or a graph if the file was IR text or ONNX.
    example_inputs
        What the model is called with.
    """

    model: nn.Module | ExportedProgram | Graph
    example_inputs: ExampleInputs

    def to_graph(self, dynamic_shapes: UserObject = None) -> Graph:
        """The model as a graph (see `from_torch`) on the same memory: nobody else has what was loaded."""
        if isinstance(self.model, Graph):
            return self.model
        return from_torch(self.model, self.example_inputs, dynamic_shapes, copy_weights=False)


def load_model(
    spec: str,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Constants | None = None,
    dynamic_shapes: UserObject = None,
    hints: Mapping[str, int] | None = None,
) -> LoadedModel:
    """Load the model that ``spec`` names; no code from a file is ever run.

    Parameters
    ----------
    spec
        Path of a ``.pt2`` file (`torch.export.save`), of an ``.onnx`` file, or of an IR text file with its weights
        beside it, or ``package.module:factory``. The factory, found from the current directory as by ``python -m``,
        takes no arguments and returns ``(module, example_inputs)``.
    shapes, constants, dynamic_shapes, hints
        For an ONNX file (see `from_onnx`); models of other kinds take dynamic shapes when they become graphs.

    Raises
    ------
    TersorError
        With one line that says what to do, when there is no such file, module or factory, or it holds something else.
    """
    path = Path(spec)
    if path.is_dir():
        raise TersorError(f"{spec}: is a directory; name {_KNOWN}")
    if path.exists():
        return _load_file(path, lambda: from_onnx(path, shapes, constants, dynamic_shapes, hints))
    if ":" in spec:
        return LoadedModel(*_checked_factory_result(spec, call_factory(spec)))
    raise TersorError(f"{spec}: no such file; name {_KNOWN}")


def load_onnx(
    path: Path,
    example_inputs: ExampleInputs | None = None,
    dynamic_shapes: UserObject = None,
    shapes: Sequence[Mapping[str, int] | int] | None = None,
) -> LoadedModel:
    """The graph of an ONNX file, and example inputs in its order.

    Parameters
    ----------
    example_inputs
        Tensors, by name or in the order of the file; random ones if omitted.
    dynamic_shapes
        Which extents a call chooses (see `from_onnx`).
    shapes
        Numbers of these extents that programs are made for; the first are their hints.

    Raises
    ------
    TersorError
        When it is another file, cannot be converted, or the example inputs are not those that it takes.
    """
    if path.suffix != ".onnx":
        raise TersorError(
            f"{path}: is no ONNX file, of which only a path is enough; load others by torch.export.load or load_ir"
        )
    if dynamic_shapes is not None and example_inputs is None and not shapes:
        raise TersorError(f"{path}: say which shapes to compile programs for, for example shapes=[{{'batch': 1}}]")
    args, named = ((), {}) if example_inputs is None else split_inputs(example_inputs)
    if (args and named) or not all(isinstance(one, torch.Tensor) for one in (*args, *named.values())):
        raise TersorError(f"{path}: example_inputs must be tensors, all by name or all in the order of the inputs")
    sizes = {name: tuple(one.shape) for name, one in named.items()} if named else [tuple(one.shape) for one in args]
    first = next(iter(shapes or ()), None)
    graph = from_onnx(path, sizes, None, dynamic_shapes, first if isinstance(first, Mapping) else None)
    names = [value.name for value in graph.user_inputs]
    missing = [name for name in names if name not in named] if named else names[len(args) :]
    if missing and example_inputs is not None:
        raise TersorError(f"{path}: example_inputs lack {', '.join(missing)}")
    if example_inputs is None:
        return LoadedModel(graph, example_tensors([value.type for value in at_hints(graph).user_inputs]))
    return LoadedModel(graph, tuple(named[name] for name in names) if named else args)


def example_tensors(types: list[TensorType], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs of the given types: seeded normal numbers, zeros for integers (valid as indices), true for booleans.

    Raises TersorError if this machine's memory cannot hold them.
    """
    check_memory(sum(type.bytes for type in types), "the inputs")
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example_tensor(type, generator) for type in types)


def _example_tensor(type: TensorType, generator: torch.Generator) -> torch.Tensor:
    if type.dtype.is_floating:
        return torch.randn(type.shape, generator=generator).to(type.dtype.torch)
    return torch.full(type.shape, type.dtype is DType.BOOL, dtype=type.dtype.torch)


def _load_file(path: Path, import_onnx: Callable[[], Graph]) -> LoadedModel:
    if not path.is_file():
        raise TersorError(f"{path}: is not a regular file but a device, pipe or socket; name a file on disk")
    kind = _kind(path)
    if kind != _SUFFIXES.get(path.suffix, kind):
        raise TersorError(
            f"{path}: is {kind}, but its suffix is that of {_SUFFIXES[path.suffix]}; if you trust where it comes from, "
            f"give it the suffix {next(suffix for suffix in _SUFFIXES if _SUFFIXES[suffix] == kind)}"
        )
    if kind == _COMPILED:
        raise TersorError(f"{path}: is a compiled model already; use it with `tersor run` or `tersor bench`")
    if kind in (_TEXT, _ONNX):
        graph = load_ir(path) if kind == _TEXT else import_onnx()
        return LoadedModel(graph, example_tensors([value.type for value in at_hints(graph).user_inputs]))
    program = load_program(path)
    if program.example_inputs is not None:
        return LoadedModel(program, _simplest(*program.example_inputs))
    types = [value.type for value in at_hints(from_torch(program, copy_weights=False)).user_inputs]
    return LoadedModel(program, example_tensors(types))


def _kind(path: Path) -> str:
    """What a file's contents are; raises TersorError if they are no model."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise TersorError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if start.startswith(_PICKLE):
        raise TersorError(f"{path}: is a pickle, which can run code when loaded, so it is refused; {_EXPORT_HINT}")
    if path.suffix == ".onnx":
        return _ONNX
    if _IR_TEXT.match(start):
        return _TEXT
    if path.suffix == ".pt2":
        raise TersorError(f"{path}: is truncated, or not an exported program; {_EXPORT_HINT}")
    raise TersorError(f"{path}: is neither an exported program nor IR text; {_EXPORT_HINT}")


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            start = min((member.header_offset for member in archive.infolist()), default=0)
            older = _version_of_older(archive) if _OLDER in names else ""
    except Exception as error:  # zipfile raises errors of many kinds on damaged directories
        raise TersorError(f"{path}: is truncated, or not an exported program; {_EXPORT_HINT}") from error
    if start:  # what was found is an archive inside of the archive, of which the end is missing
        raise TersorError(f"{path}: is truncated, or not an exported program; {_EXPORT_HINT}")
    if any(name.endswith("/data.pkl") for name in names):
        raise TersorError(
            f"{path}: is a file of torch.save (weights or a pickled module), not an exported program; {_EXPORT_HINT}"
        )
    if "manifest.json" in names:
        return _COMPILED
    if _OLDER in names:
        raise TersorError(
            f"{path}: was written by PyTorch {older}, in a format with pickles, which PyTorch {torch.__version__} no "
            f"longer writes, and which is refused because it can run code when loaded; {AGAIN}"
        )
    if not any(name.endswith("/archive_format") for name in names):
        raise TersorError(f"{path}: is a zip file, but not an exported program; {_EXPORT_HINT}")
    return _PROGRAM


def _version_of_older(archive: zipfile.ZipFile) -> str:
    """The version of PyTorch that wrote a program in the format before archives."""
    if archive.getinfo(_OLDER).file_size > _OLDER_BYTES:
        return "of an older version"
    match = re.search(rb'"torch_version": "([\w.+]{1,30})"', archive.read(_OLDER))
    return match[1].decode() if match else "of an older version"


def _simplest(args: tuple[UserObject, ...], kwargs: dict[str, UserObject]) -> ExampleInputs:
    if args and kwargs:
        return Arguments(*args, **kwargs)
    return dict(kwargs) or tuple(args)


def _checked_factory_result(spec: str, result: UserObject) -> tuple[UserObject, ExampleInputs]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TersorError(f"{spec}: must return (module, example_inputs), not {_describe(result)}")
    model, inputs = result
    if not isinstance(model, nn.Module | ExportedProgram | Graph):
        raise TersorError(f"{spec}: must return (module, example_inputs), but the first is {_describe(model)}")
    try:
        args, kwargs = split_inputs(inputs)
    except TersorError as error:
        raise TersorError(f"{spec}: {error}") from error
    return model, _simplest(args, kwargs)


def _describe(value: UserObject) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
