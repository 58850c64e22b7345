"""The manifest of an artifact: what the file contains and what it needs, as JSON that is checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...ir import TersorError
from ...ir.arrangement import Arrangement, HeldWeight
from ...ir.codec import CodecError, decode, encode
from ...ir.foreign import Json
from ..machines.catalog import TARGETS
from ..machines.target import Gpu, Target
from ..runtime.exits import EarlyExits
from ..runtime.model_info import ModelInfo

SCHEMA = 6  # 5 stored all weights of the graph, 4 had no exits, 3 one program, 2 neither states nor structure
_OLDEST, _LAST_OF_ONE_PROGRAM = 2, 3

CODE, GRAPH = "model.so", "graph.ir"  # members of an artifact of one program


class ArtifactError(TersorError):
    """An artifact that cannot be written, is damaged, or cannot run here."""


@dataclass(frozen=True)
class Member:
    """Size in bytes and digest (hexadecimal, see `tersor.targets.packaging.archive`) of one member of the archive."""

    size: int
    digest: str


@dataclass(frozen=True)
class Constant:
    """Where one flat constant lies in ``constants.bin``: PyTorch's name of its dtype, offset in bytes, elements."""

    dtype: str
    offset: int
    count: int


@dataclass(frozen=True)
class PackedWeight:
    """A weight of the graph that a constant holds: which one, PyTorch's name of the weight's dtype, shape, and how."""

    constant: int
    dtype: str
    shape: tuple[int, ...]
    arrangement: Arrangement

    @classmethod
    def of(cls, held: HeldWeight, constant: int) -> PackedWeight:
        """What the manifest says of a weight that the constant of this number holds."""
        return cls(constant, str(held.dtype).removeprefix("torch."), held.shape, held.arrangement)


@dataclass(frozen=True)
class ProgramEntry:
    """One program of an artifact.

    Attributes
    ----------
    model
        Inputs, outputs, target and kernels.
    constants
        Which of the manifest's constants the code reads, in the order of the code.
    code, graph
        The members with its code, and with the graph that it was made of.
    numbers
        What the symbols of ``graph.ir`` are in it; nothing in an artifact of fixed shapes.
    """

    model: ModelInfo
    constants: tuple[int, ...]
    code: str
    graph: str
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What stands in ``manifest.json``.

    Attributes
    ----------
    created
        UTC, in ISO 8601.
    versions
        Of tersor, torch and apache-tvm at compile time.
    system, machine
        Operating system and architecture that the code runs on, as `platform.system` and `platform.machine` name them.
    features
        Instruction sets that the processor must have, in the names of /proc/cpuinfo.
    programs
        All programs, at least one; they are for one target.
    constants
        What lies in ``constants.bin``, in this order.
    members
        All members of the archive but the manifest itself.
    exits
        When a call may stop, of a model whose programs are its segments.
    packed
        Weights of the graph that are not in ``graph.safetensors``, since constants hold them, by id.
    schema
        Version of this format; a reader refuses newer ones and those that are too old.
    """

    created: str
    versions: Mapping[str, str]
    system: str
    machine: str
    features: tuple[str, ...]
    programs: tuple[ProgramEntry, ...]
    constants: tuple[Constant, ...]
    members: Mapping[str, Member]
    exits: EarlyExits | None = None
    packed: Mapping[str, PackedWeight] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def target(self) -> Target:
        """What the code was compiled for."""
        return self.programs[0].model.target

    def to_text(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(encode(self), indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str | bytes) -> Manifest:
        """Read what `to_text` wrote.

        Raises
        ------
        ArtifactError
            When the text is not JSON, the schema is another, or a field, which is named, is missing, unknown or of the
            wrong type.
        """
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            raise ArtifactError(f"the manifest is not JSON ({error})") from error
        schema = tree.get("schema") if isinstance(tree, dict) else None
        if type(schema) is not int:
            raise ArtifactError("the manifest has no schema version")
        if schema > SCHEMA:
            raise ArtifactError(
                f"schema {schema} is newer than {SCHEMA}, the newest known here; update tersor to read it"
            )
        if schema < _OLDEST:
            raise ArtifactError(
                f"schema {schema} is older than {_OLDEST}, the oldest known here; compile the model again"
            )
        if schema <= _LAST_OF_ONE_PROGRAM:
            tree = _with_programs(tree)
        try:
            decoded: Manifest = decode(cls, tree, "manifest")
        except CodecError as error:
            raise ArtifactError(str(error)) from error
        if not decoded.programs or any(one.model.target != decoded.target for one in decoded.programs):
            raise ArtifactError("the manifest must have programs for one target")
        known = TARGETS.get(decoded.target.name)
        if isinstance(known, Gpu):  # older manifests describe a GPU as if it were a processor
            programs = (replace(one, model=replace(one.model, target=known)) for one in decoded.programs)
            return replace(decoded, programs=tuple(programs))
        return decoded


def _with_programs(tree: Json) -> Json:
    """What an older manifest says, in today's form."""
    count = len(tree["constants"]) if isinstance(tree.get("constants"), list) else 0
    entry = {"constants": list(range(count)), "code": CODE, "graph": GRAPH}
    if "model" in tree:
        entry["model"] = tree["model"]
    return {name: value for name, value in tree.items() if name != "model"} | {"programs": [entry]}
