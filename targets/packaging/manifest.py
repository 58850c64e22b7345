"""The manifest of an artifact: what the file contains and what it needs, as JSON that is checked field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

from ...ir import IRError, TensorType, TersorError
from ..runtime.model_info import ModelInfo

SCHEMA = 2


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
        Version of this format; a reader refuses all others.
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

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(_encode(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read what `to_json` wrote.

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
        if schema < SCHEMA:
            raise ArtifactError(
                f"schema {schema} is older than {SCHEMA}, the only one known here; compile the model again"
            )
        return _decode(cls, tree, "manifest")


def _encode(value: Any) -> Any:
    if isinstance(value, TensorType):
        return str(value)
    if is_dataclass(value):
        return {entry.name: _encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Make a ``kind`` of ``value``, which is from JSON.

    ``kind`` is str, bool, int, TensorType, tuple[X, ...], Mapping[str, X] or a dataclass of such.
    """
    if kind is TensorType:
        return _decode_type(_decode(str, value, where), where)
    if kind is int:
        if type(value) is not int or not 0 <= value < 2**63:
            raise ArtifactError(f"{where} must be a whole number, not {_shown(value)}")
        return value
    if get_origin(kind) is tuple:
        item_kind = get_args(kind)[0]
        return tuple(_decode(item_kind, item, f"{where}[{i}]") for i, item in enumerate(_expect(list, value, where)))
    if get_origin(kind) is Mapping:
        item_kind = get_args(kind)[1]
        items = _expect(dict, value, where).items()
        return MappingProxyType({key: _decode(item_kind, item, f"{where}.{key}") for key, item in items})
    if is_dataclass(kind):
        return _decode_record(kind, _expect(dict, value, where), where)
    return _expect(kind, value, where)


def _decode_record(kind: Any, given: dict[str, Any], where: str) -> Any:
    known = {entry.name: entry for entry in fields(kind)}
    missing = [name for name, entry in known.items() if name not in given and entry.default is MISSING]
    unknown = [name for name in given if name not in known]
    if missing or unknown:
        raise ArtifactError(
            f"{where} " + (f"lacks {missing[0]!r}" if missing else f"has an unknown field {unknown[0]!r}")
        )
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in given.items()})


def _decode_type(text: str, where: str) -> TensorType:
    try:
        return TensorType.parse(text)
    except (IRError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ArtifactError(f"{where}: {error}") from error


_JSON_NAMES: dict[type, str] = {list: "a list", dict: "an object", str: "text", bool: "true or false"}


def _expect(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise ArtifactError(f"{where} must be {_JSON_NAMES[kind]}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
