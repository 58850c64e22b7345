"""The file of a compiled model, ``model.tersor``: code, weights and graph in one archive.

=====================  ===================================================================================
``manifest.json``      inputs, outputs, target, kernels, versions, and a digest of every other member
``model.so``           the compiled code
``constants.bin``      the code's constants, laid out as kernels read them; mapped, not read
``graph.ir``           the graph that was compiled, as text
``graph.safetensors``  its weights, but for those that the constants hold in another order
=====================  ===================================================================================

In a model of several shapes, ``graph.ir`` has symbols. Each program has code and a graph of its own (``program-1.so``,
``program-1.ir``), and all share the constants and the weights. So do the segments of a model with exits, whose order
and connections follow from ``graph.ir`` (`tersor.ir.segments`); the manifest has the thresholds.

`read` checks what it reads before it maps any code: all but the weights of the graph, which are as large as the
constants and are checked when the graph is asked for. The manifest must fit the graph, and the code's own signature,
before any of it runs (see `checks`). The digests find damage, not malice: whoever can write the file
can write fitting digests, and its code runs with the rights of the process, as any program's does. Constants stay
mapped while the model is in use, so the file may be deleted or replaced (as `save` does it) but not changed in place.
"""

from __future__ import annotations

import datetime
import platform
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from ...ir import DType, Graph, TersorError, WeightStore, parse, shorten, verify
from ...ir.files import replacing, temporary_folder
from ...ir.storage import ir_text
from ..machines.catalog import host_features, host_machine, native_name
from ..machines.families import backend_of, family_of
from ..machines.target import Target
from ..runtime.compiled_model import Compiled, CompiledFamily, CompiledModel, CompiledSegments, Numbers
from ..runtime.exits import EarlyExits
from ..runtime.held_weights import find_held
from .archive import ALIGNMENT, Archive, ArchiveWriter
from .checks import ELF_HEADER_BYTES, check_code, check_graph, check_program, check_target, cut_as_said, is_library_for
from .manifest import CODE, GRAPH, ArtifactError, Constant, Manifest, Member, PackedWeight, ProgramEntry

if TYPE_CHECKING:
    from ..runtime.virtual_machine import LinkedCode

SUFFIX = ".tersor"
_MODEL_SUFFIXES = (".pt2", ".ir")  # of files that run no code when loaded: no artifact is taken for one
MANIFEST, CONSTANTS, WEIGHTS = "manifest.json", "constants.bin", "graph.safetensors"

_ONLY = Path(CODE).stem  # the name of the only program
_VERSIONED = ("tersor", "torch", "apache-tvm")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (*(d.torch for d in DType), torch.uint16, torch.uint32)
}
_COPY_BYTES = 4 << 20  # read at a time when a file is copied into the archive


def save(model: Compiled, path: str | Path) -> Path:
    """Write an artifact; an existing file is replaced only when the new one is complete.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    path = Path(path)
    contents = _Contents.of(model)
    check_target(contents.target)
    with replacing(path) as fresh:
        _write(contents, fresh)
    return path


def read(path: str | Path, *, runnable: bool = True) -> Compiled:
    """Read what `save` wrote; its code is loaded, its graph is read when it is asked for.

    Parameters
    ----------
    runnable
        Whether this machine must be able to run the code; if not, code for another one is kept as it is.

    Raises
    ------
    ArtifactError
        See `tersor.load`.
    """
    path = Path(path)
    with _about(path):
        archive, manifest = _open(path)
        from ..machines.features import obstacle_here  # needs TVM
        from ..runtime.virtual_machine import LinkedCode

        with _again():
            check_target(manifest.target)
        foreign = not runnable and obstacle_here(manifest.target)
        if not foreign:
            _check_host(path, manifest)
        archive.check({name: member for name, member in manifest.members.items() if name != WEIGHTS})
        constants = _map_constants(archive[CONSTANTS], manifest.constants)
        whole = _parse_graph(archive, GRAPH, None)
        with _again():
            segments = cut_as_said(whole, manifest)
        arrangements = {one.constant: one.arrangement for one in manifest.packed.values()}
        models = []
        for index, entry in enumerate(manifest.programs):
            part = segments[index].graph if segments else whole
            graph = whole if entry.graph == GRAPH else _parse_graph(archive, entry.graph, None)
            with _again():
                check_graph(entry.model, graph)
                check_program(entry, whole, part, graph, len(constants))
            data = archive[entry.code]
            code = LinkedCode(bytes(data), None) if foreign else _load_code(data, manifest)
            if not foreign and backend_of(manifest.target) is None:
                with _again():
                    check_code(entry.model, [manifest.constants[index] for index in entry.constants], code.module)
            used = tuple(constants[index] for index in entry.constants)
            read_graph = partial(_read_graph, path, archive, manifest, entry.graph)
            arranged = {place: arrangements[at] for place, at in enumerate(entry.constants) if at in arrangements}
            models.append(CompiledModel(entry.model, code, used, read_graph, graph.structure, arranged))
    read_whole = partial(_read_graph, path, archive, manifest)
    if manifest.exits is not None:
        takes = tuple(segment.takes for segment in segments)
        return CompiledSegments(tuple(models), takes, manifest.exits, whole, read_whole)
    if not whole.symbols:
        return models[0]
    programs = tuple((entry.numbers, model) for entry, model in zip(manifest.programs, models, strict=True))
    return CompiledFamily(programs, whole, read_whole)


def load_graph(path: str | Path) -> Graph:
    """The graph within an artifact, whatever machine or TVM its code is for.

    Raises
    ------
    ArtifactError
        When the file is missing, damaged or of another format.
    """
    path = Path(path)
    with _about(path):
        archive, manifest = _open(path)
    return _read_graph(path, archive, manifest)


def is_artifact(path: str | Path) -> bool:
    """Whether a file's name, or a manifest in it, says that it is an artifact."""
    path = Path(path)
    if path.suffix in (SUFFIX, *_MODEL_SUFFIXES):
        return path.suffix == SUFFIX
    if not path.is_file():  # opening a pipe may never end
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return False


# Writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contents:
    """What is written: the graph, each program with the name of its files, and the constants of all."""

    graph: Graph
    programs: tuple[tuple[str, Numbers, CompiledModel], ...]
    constants: tuple[torch.Tensor, ...]
    exits: EarlyExits | None = None

    @cached_property
    def packed(self) -> dict[str, PackedWeight]:
        """Large weights of the graph that a constant holds, number by number."""
        places = {id(constant): index for index, constant in enumerate(self.constants)}
        arrangements = {
            places[id(model.constants[number])]: arrangement
            for _, _, model in self.programs
            for number, arrangement in model.arrangements.items()
        }
        found = find_held(self.graph.weights, self.constants, arrangements)
        return {name: PackedWeight.of(held, places[id(held.packed)]) for name, held in found.items()}

    @classmethod
    def of(cls, model: Compiled) -> _Contents:
        if isinstance(model, CompiledModel):
            return cls(model.graph, ((_ONLY, {}, model),), model.constants)
        parts: Iterable[tuple[Numbers, CompiledModel]]
        if isinstance(model, CompiledSegments):
            parts, exits = (({}, one) for one in model.models), model.exits
        else:
            parts, exits = model.programs, None
        programs = tuple((f"program-{index}", numbers, one) for index, (numbers, one) in enumerate(parts, start=1))
        unique = {id(constant): constant for _, _, one in programs for constant in one.constants}
        return cls(model.graph, programs, tuple(unique.values()), exits)

    @property
    def target(self) -> Target:
        return self.programs[0][2].info.target

    @property
    def entries(self) -> tuple[ProgramEntry, ...]:
        places = {id(constant): index for index, constant in enumerate(self.constants)}
        return tuple(
            ProgramEntry(
                model=model.info,
                constants=self._all if name == _ONLY else tuple(places[id(constant)] for constant in model.constants),
                code=f"{name}.so",
                graph=GRAPH if name == _ONLY else f"{name}.ir",
                numbers=numbers,
            )
            for name, numbers, model in self.programs
        )

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(len(self.constants)))


def _write(contents: _Contents, path: Path) -> None:
    from ..machines.features import required_features  # needs TVM

    scratch = path.parent
    weights = contents.graph.weights
    WeightStore({name: weights[name] for name in weights if name not in contents.packed}).save(scratch / WEIGHTS)
    target, entries = contents.target, contents.entries
    constants, constants_bytes = index_constants(contents.constants)
    with ArchiveWriter(path) as archive:
        members = {CONSTANTS: archive.add(CONSTANTS, constants_bytes, constant_chunks(contents.constants))}
        for entry, (_, _, model) in zip(entries, contents.programs, strict=True):
            members[entry.code] = archive.add(entry.code, len(model.code.alone), [model.code.alone])
            if entry.graph != GRAPH:
                members[entry.graph] = _add_text(archive, entry.graph, model.graph)
        members[GRAPH] = _add_text(archive, GRAPH, contents.graph)
        members[WEIGHTS] = archive.add(WEIGHTS, (scratch / WEIGHTS).stat().st_size, _file_chunks(scratch / WEIGHTS))
        manifest = Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions={name: version(name) for name in _VERSIONED},
            system=platform.system(),
            machine=family_of(target).machine,
            features=required_features(target),
            programs=entries,
            constants=constants,
            members=members,
            exits=contents.exits,
            packed=contents.packed,
        )
        archive.add_index(MANIFEST, manifest.to_text().encode())


def _add_text(archive: ArchiveWriter, name: str, graph: Graph) -> Member:
    text = ir_text(graph).encode()
    return archive.add(name, len(text), [text])


def index_constants(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Constant, ...], int]:
    """Where each constant will lie, and the size of them all in bytes."""
    constants, end = [], 0
    for tensor in tensors:
        constants.append(Constant(str(tensor.dtype).removeprefix("torch."), end, tensor.numel()))
        end += _padded(tensor.nbytes)
    return tuple(constants), end


def constant_chunks(tensors: Sequence[torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of all constants, as `index_constants` places them."""
    for tensor in tensors:
        if tensor.numel():
            yield tensor.view(torch.uint8).numpy().data
            yield bytes(_padded(tensor.nbytes) - tensor.nbytes)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            yield chunk


# Reading ----------------------------------------------------------------------------------------------------------


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Name the file in errors."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


@contextmanager
def _again() -> Iterator[None]:
    """Say what to do in errors of checks."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{error}; compile the model again") from error


def _open(path: Path) -> tuple[Archive, Manifest]:
    """Map the file, read its manifest, and see that it has exactly the members that it should."""
    archive = Archive(path)
    text = archive.index(MANIFEST)
    if path.suffix in _MODEL_SUFFIXES:
        raise ArtifactError(
            f"is a compiled model, whose code would run; if you trust where it comes from, give it the suffix {SUFFIX}"
        )
    manifest = Manifest.from_text(text)
    wanted = {CONSTANTS, GRAPH, WEIGHTS} | {name for one in manifest.programs for name in (one.code, one.graph)}
    for problem, names in (
        ("lacks", wanted - archive.names),
        ("has an unknown member", archive.names - wanted - {MANIFEST}),
        ("has no hash of", wanted - manifest.members.keys()),
        ("has a hash of an unknown member", manifest.members.keys() - wanted),
    ):
        if names:
            raise ArtifactError(f"{problem} {min(names)!r}; use the file as `tersor compile` wrote it")
    return archive, manifest


def _check_host(path: Path, manifest: Manifest) -> None:
    from ..machines.features import required_features  # needs TVM

    here, machine = platform.system(), platform.machine()
    remedy = f"compile it for this one: tersor compile {path} --target {native_name()} -o NEW{SUFFIX}"
    if (manifest.system, manifest.machine) != (here, host_machine()):
        made_for = f"{manifest.system} on {manifest.machine}"
        raise ArtifactError(f"compiled for {made_for}, this machine is {here} on {machine}; {remedy}")
    missing = sorted({*manifest.features, *required_features(manifest.target)} - host_features())
    if missing:
        target = manifest.target.name
        raise ArtifactError(f"compiled for {target}, this processor lacks {', '.join(missing)}; {remedy}")
    backend = backend_of(manifest.target)
    obstacle = "" if backend is None else backend.obstacle_here(manifest.target)
    if obstacle:
        raise ArtifactError(f"compiled for {manifest.target.name}, {obstacle}; {remedy}")
    made_with, installed = manifest.versions.get("apache-tvm", "an unknown version"), version("apache-tvm")
    if made_with != installed:
        raise ArtifactError(
            f"compiled with TVM {made_with}, whose code TVM {installed} cannot run; "
            f"compile it again: tersor compile {path} -o NEW{SUFFIX}"
        )
    if manifest.features != required_features(manifest.target):
        raise ArtifactError("features of the manifest are not those of the target; compile the model again")


def _map_constants(data: memoryview, constants: Sequence[Constant]) -> tuple[torch.Tensor, ...]:
    tensors, end = [], 0
    for index, constant in enumerate(constants):
        dtype = _DTYPES.get(constant.dtype)
        if dtype is None or constant.offset != end or end + constant.count * dtype.itemsize > len(data):
            raise ArtifactError(f"constant {index} of the manifest is not within {CONSTANTS}; compile the model again")
        if constant.count:
            tensors.append(torch.frombuffer(data, dtype=dtype, count=constant.count, offset=constant.offset))
        else:
            tensors.append(torch.empty(0, dtype=dtype))
        end += _padded(constant.count * dtype.itemsize)
    if end != len(data):
        raise ArtifactError(f"{CONSTANTS} has {len(data)} bytes, the manifest {end}; compile the model again")
    return tuple(tensors)


def _load_code(data: memoryview, manifest: Manifest) -> LinkedCode:
    from ..runtime.virtual_machine import LinkedCode

    if not is_library_for(manifest.machine, bytes(data[:ELF_HEADER_BYTES])):
        raise ArtifactError(
            f"its code cannot be loaded, it is no library for {manifest.machine}; compile the model again"
        )
    backend = backend_of(manifest.target)
    with temporary_folder() as private:  # readable by this user only
        library = private / CODE
        try:
            library.write_bytes(data)
            load: Callable[[Path], LinkedCode] = LinkedCode.load if backend is None else backend.load_code
            return load(library)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(
                f"its code cannot be loaded from {private} ({reason}); "
                "if programs may not run there, set TMPDIR to a directory where they may"
            ) from error


def _read_graph(path: Path, archive: Archive, manifest: Manifest, member: str = GRAPH) -> Graph:
    with _about(path):
        needed = (member, WEIGHTS, *((CONSTANTS,) if manifest.packed else ()))
        archive.check({name: manifest.members[name] for name in needed})
        constants = _map_constants(archive[CONSTANTS], manifest.constants)
        with _again():
            packed = {name: _unpacked(name, one, constants) for name, one in manifest.packed.items()}
        return _parse_graph(archive, member, archive[WEIGHTS], packed)


def _unpacked(name: str, packed: PackedWeight, constants: Sequence[torch.Tensor]) -> torch.Tensor:
    """A weight out of the constant that holds it."""
    dtype = _DTYPES.get(packed.dtype)
    there = 0 <= packed.constant < len(constants) and constants[packed.constant]
    if dtype is None or there is False or there.numel() != packed.arrangement.size:
        raise ArtifactError(f"weight {shorten(name)!r} of the manifest is not in its constants")
    if there.element_size() != dtype.itemsize or not packed.arrangement.holds(packed.shape):
        raise ArtifactError(f"weight {shorten(name)!r} of the manifest does not fit the constant that holds it")
    return packed.arrangement.unpacked(there, packed.shape).view(dtype)


def _parse_graph(
    archive: Archive, member: str, weights: memoryview | None, packed: Mapping[str, torch.Tensor] | None = None
) -> Graph:
    try:
        store = None if weights is None else WeightStore(safetensors.torch.load(bytes(weights)) | dict(packed or {}))
        graph = parse(str(archive[member], "utf-8"), store)
        if store is not None:
            verify(graph)  # weights have the types that the text says
        return graph
    except (TersorError, safetensors.SafetensorError, ValueError) as error:
        raise ArtifactError(f"the graph in it is not readable ({error}); compile the model again") from error
