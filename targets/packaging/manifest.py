"""The manifest of an artifact: what the file contains and what it needs, as JSON that is checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...ir import TersorError
from ..machines.catalog import TARGETS
from ..machines.target import Gpu
from ..runtime.model_info import ModelInfo
from ..templates.codec import CodecError, decode, encode

SCHEMA = 3  # 2 had neither states nor structure
_OLDEST = 2


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
    model
        Inputs, outputs, target and kernels.
    constants
        In the order of the code's constants.
    members
        All members of the archive but the manifest itself.
    schema
        Version of this format; a reader refuses newer ones and those that are too old.
    """

    created: str
    versions: Mapping[str, str]
    system: str
    machine: str
    features: tuple[str, ...]
    model: ModelInfo
    constants: tuple[Constant, ...]
    members: Mapping[str, Member]
    schema: int = SCHEMA

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
        try:
            decoded: Manifest = decode(cls, tree, "manifest")
        except CodecError as error:
            raise ArtifactError(str(error)) from error
        known = TARGETS.get(decoded.model.target.name)
        if isinstance(known, Gpu):  # older manifests describe a GPU as if it were a processor
            return replace(decoded, model=replace(decoded.model, target=known))
        return decoded
