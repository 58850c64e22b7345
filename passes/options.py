"""Option values of passes: between pipeline text and the types of dataclass fields.

Text forms: ``true``, ``8``, ``0.95``, ``tucker2`` or ``"any text"``, the value of an enum member, ``[1,2]``,
``{conv1: 0.5, "conv*": 0}``, ``none``.
"""

from __future__ import annotations

import json
import re
import types
from enum import Enum
from typing import Literal, Union, get_args, get_origin

from ..ir import suggest
from ..ir.foreign import Annotation, Instance

BARE = re.compile(r"[^\s,{}\[\]=\"]+")
KEY = re.compile(r"[^\s,{}\[\]=\":]+")  # of a table, before the colon


class Quoted(str):
    """A string that was written in quotes, so that it is never a number, a boolean or none."""


RawValue = str | list["RawValue"] | dict[str, "RawValue"]  # what the pipeline parser reads: bare or quoted text, …


def convert(raw: RawValue, kind: Annotation) -> Instance:
    """Convert what was read to the type ``kind``; raises ValueError that says what was expected."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(raw, get_args(kind))
    if origin is Literal:
        return _one_of(raw, {str(choice): choice for choice in get_args(kind)})
    if kind is tuple or origin is tuple:
        return _convert_tuple(raw, get_args(kind))
    if origin is dict:
        return _convert_dict(raw, get_args(kind)[1])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of(raw, {str(member.value): member for member in kind})
    if kind is bool:
        return _one_of(raw, {"true": True, "false": False})
    if isinstance(raw, list | dict):
        raise ValueError(f"expected {_name(kind)}, got a {'list' if isinstance(raw, list) else 'table'}")
    if kind is str:
        return str(raw)
    if kind in (int, float) and not isinstance(raw, Quoted):
        try:
            return kind(raw)
        except ValueError:
            raise ValueError(f"expected {_name(kind)}, got {raw!r}") from None
    raise ValueError(f"expected {_name(kind)}, got {raw!r}")


def print_value(value: object) -> str:
    """The text that `convert` reads back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return print_value(value.value)
    if isinstance(value, tuple):
        return f"[{','.join(map(print_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_print_key(key)}:{print_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, str):
        return value if BARE.fullmatch(value) and value != "none" else json.dumps(value)
    return repr(value)


def _print_key(key: str) -> str:
    return key if KEY.fullmatch(key) else json.dumps(key)


def _convert_dict(raw: RawValue, kind: Annotation) -> dict[str, Instance]:
    if not isinstance(raw, dict):
        raise ValueError(f"expected a table such as {{conv1: 0.5}}, got {raw!r}")
    return {key: convert(one, kind) for key, one in raw.items()}


def _convert_union(raw: RawValue, kinds: tuple[Annotation, ...]) -> Instance:
    if type(None) in kinds and raw == "none" and not isinstance(raw, Quoted):
        return None
    problems = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return convert(raw, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; or ".join(problems))


def _convert_tuple(raw: RawValue, kinds: tuple[Annotation, ...]) -> tuple[Instance, ...]:
    if not isinstance(raw, list):
        raise ValueError(f"expected a list such as [1,2], got {raw!r}")
    if not kinds:
        return tuple(convert(item, str) for item in raw)
    if kinds[-1] is Ellipsis:
        return tuple(convert(item, kinds[0]) for item in raw)
    if len(raw) != len(kinds):
        raise ValueError(f"expected {len(kinds)} items, got {len(raw)}")
    return tuple(convert(item, kind) for item, kind in zip(raw, kinds, strict=True))


def _one_of(raw: RawValue, choices: dict[str, Instance]) -> Instance:
    if isinstance(raw, str) and raw in choices:
        return choices[raw]
    kinds = {list: "a list", dict: "a table"}
    shown, hint = (repr(raw), suggest(raw, choices)) if isinstance(raw, str) else (kinds[type(raw)], "")
    hint = hint if hint.startswith("; did you mean") else ""  # the choices are listed anyway
    raise ValueError(f"expected one of {', '.join(choices)}, got {shown}{hint}")


def _name(kind: Annotation) -> str:
    return {int: "an integer", float: "a number"}.get(kind, getattr(kind, "__name__", str(kind)))
