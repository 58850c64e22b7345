"""Frozen dataclasses of plain numbers, texts, tuples and mappings to JSON types and back, checked field by field.

Fields that comparisons leave out are no part of the JSON. A number that is not known, NaN, is null.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from .errors import IRError, shorten
from .foreign import Annotation, Instance, Json
from .types import TensorType

_LARGEST = 2**63  # beyond all integers
_NAMES: dict[Annotation, str] = {int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null"}


class CodecError(ValueError):
    """JSON that does not describe the expected record; the message names the field."""


class UnknownNameError(CodecError):
    """JSON that names something unknown here, as another version of Tersor may have written it."""


def encode(value: object) -> Json:
    """JSON types for a dataclass, a tensor's type, a mapping, a tuple, a number, a text, or None."""
    if isinstance(value, TensorType):
        return str(value)
    if is_dataclass(value):
        return {entry.name: encode(getattr(value, entry.name)) for entry in fields(value) if entry.compare}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decode(kind: Annotation, value: Json, where: str) -> Instance:
    """Make a ``kind`` of JSON types.

    Parameters
    ----------
    kind
        A dataclass, a class with a method ``from_json``, or the annotation of a field: int, float, bool, str, None,
        `TensorType`, ``Literal``, a union, a tuple, or a mapping from str.
    where
        Name of the value for messages.

    Raises
    ------
    CodecError
        For a field that is missing or of the wrong type, and for values that ``kind`` refuses; for an unknown field
        it is an `UnknownNameError`.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    if kind is TensorType:
        return _decode_type(decode(str, value, where), where)
    if is_dataclass(kind):
        return _decode_record(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where, f"one of {list(arguments)}")
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if origin is Mapping:
        items = _expect(isinstance(value, dict), value, where, "an object").items()
        return types.MappingProxyType({key: decode(arguments[1], item, f"{where}.{key}") for key, item in items})
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(_expect(number, value, where, "a number"))
    fits = (value is None) if kind is types.NoneType else type(value) is kind
    return _expect(fits and (kind is not int or abs(value) < _LARGEST), value, where, _NAMES[kind])


def _decode_type(text: str, where: str) -> TensorType:
    try:
        return TensorType.parse(text)
    except (IRError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise CodecError(f"{where}: {error}") from error


def _decode_record(kind: Annotation, value: Json, where: str) -> Instance:
    _expect(isinstance(value, dict), value, where, "an object")
    known = {entry.name: entry for entry in fields(kind) if entry.compare}
    unknown = [name for name in value if name not in known]
    if unknown:
        raise UnknownNameError(f"{where} has an unknown field {unknown[0]!r}")
    missing = [
        name
        for name, entry in known.items()
        if name not in value and entry.default is MISSING and entry.default_factory is MISSING
    ]
    if missing:
        raise CodecError(f"{where} lacks {missing[0]!r}")
    hints = _type_hints(kind)
    given = {name: item for name, item in value.items() if not (item is None and _is_nan(known[name].default))}
    arguments = {name: decode(hints[name], item, f"{where}.{name}") for name, item in given.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise CodecError(f"{where}: {error}") from error


_type_hints = functools.cache(get_type_hints)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _decode_union(kinds: tuple[Annotation, ...], value: Json, where: str) -> Instance:
    if isinstance(value, dict) and all(map(is_dataclass, kinds)):
        return _decode_record(max(kinds, key=lambda kind: len(value.keys() & _type_hints(kind).keys())), value, where)
    for kind in kinds:
        try:
            return decode(kind, value, where)
        except CodecError:
            continue
    names = " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds)
    raise CodecError(f"{where} must be {names}, not {shorten(repr(value), 40)}")


def _decode_tuple(kinds: tuple[Annotation, ...], value: Json, where: str) -> tuple[Instance, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _expect(len(kinds) == len(value), value, where, f"a list of {len(kinds)}")
    return tuple(decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _expect(holds: bool, value: Json, where: str, what: str) -> Json:
    if not holds:
        raise CodecError(f"{where} must be {what}, not {shorten(repr(value), 40)}")
    return value
