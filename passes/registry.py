"""Passes by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from ..ir import TersorError, suggest
from .base import Exactness, Pass

PassT = TypeVar("PassT", bound=type[Pass])

_PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class Option:
    """One option of a pass: its name, type as written, and default (None together with ``required``)."""

    name: str
    type: str
    default: Any
    required: bool


@dataclass(frozen=True)
class PassInfo:
    """What `list_passes` tells of a pass."""

    name: str
    summary: str
    exactness: Exactness
    options: tuple[Option, ...]


def register_pass(name: str) -> Callable[[PassT], PassT]:
    """Class decorator: make a frozen dataclass that derives from `Pass` usable in pipelines under ``name``.

    Raises
    ------
    TersorError
        When the name is taken or the class is not such a dataclass.
    """

    def register(kind: PassT) -> PassT:
        if name in _PASSES:
            raise TersorError(f"pass {name!r} is registered twice; choose another name")
        own_parameters = vars(kind).get("__dataclass_params__")
        if not issubclass(kind, Pass) or own_parameters is None or not own_parameters.frozen:
            raise TersorError(f"pass {name!r} must be a frozen dataclass that derives from tersor.passes.Pass")
        kind.name = name
        _PASSES[name] = kind
        return kind

    return register


def find_pass(name: str) -> type[Pass]:
    """The class registered under ``name``; raises TersorError that suggests the nearest name."""
    try:
        return _PASSES[name]
    except KeyError:
        raise TersorError(f"unknown pass {name!r}{suggest(name, _PASSES)}") from None


def pass_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_PASSES))


def list_passes() -> tuple[PassInfo, ...]:
    """All registered passes, sorted by name."""
    return tuple(_describe(_PASSES[name]) for name in pass_names())


def _describe(kind: type[Pass]) -> PassInfo:
    options = []
    for entry in fields(kind):
        default = entry.default
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        required = default is MISSING
        options.append(Option(entry.name, str(entry.type), None if required else default, required))
    summary = (kind.__doc__ or "").strip().split("\n", 1)[0]
    return PassInfo(kind.name, summary, kind.exactness, tuple(options))
