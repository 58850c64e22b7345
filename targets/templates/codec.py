"""Frozen dataclasses of plain numbers, texts and tuples to JSON types and back, checked field by field."""

from __future__ import annotations

import functools
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


class CodecError(ValueError):
    """JSON that does not describe the expected record; the message names the field."""


class UnknownNameError(CodecError):
    """JSON that names something unknown here, as another version of Tersor may have written it."""


def encode(value: Any) -> Any:
    """JSON types for a dataclass, a tuple, a number, a text, or None."""
    if is_dataclass(value):
        return {entry.name: encode(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """Make a ``kind`` of JSON types.

    Parameters
    ----------
    kind
        A dataclass, or the annotation of one of its fields: int, float, bool, str, None, ``Literal``, a union, or a
        tuple.
    where
        Name of the value for messages.

    Raises
    ------
    CodecError
        For a field that is missing or of the wrong type, and for values that ``kind`` refuses; for an unknown field
        it is an `UnknownNameError`.
    """
    if is_dataclass(kind):
        return _decode_record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        return _expect(value in arguments, value, where, f"one of {list(arguments)}")
    if origin is tuple:
        return _decode_tuple(arguments, value, where)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_expect(number, value, where, "a number"))
    if kind is types.NoneType:
        return _expect(value is None, value, where, "null")
    return _expect(type(value) is kind, value, where, f"of type {getattr(kind, '__name__', kind)}")


def _decode_record(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    known = {entry.name: entry for entry in fields(kind)}
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
    arguments = {name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise CodecError(f"{where}: {error}") from error


_type_hints = functools.cache(get_type_hints)


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return decode(kind, value, where)
        except CodecError:
            continue
    names = " or ".join(str(getattr(kind, "__name__", kind)) for kind in kinds)
    raise CodecError(f"{where} must be {names}, not {_shown(value)}")


def _decode_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _expect(len(kinds) == len(value), value, where, f"a list of {len(kinds)}")
    return tuple(decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _expect(holds: bool, value: Any, where: str, what: str) -> Any:
    if not holds:
        raise CodecError(f"{where} must be {what}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
