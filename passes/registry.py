"""Passes by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from enum import EnumType
from typing import TypeVar, dataclass_transform, get_type_hints

from ..ir import TersorError, suggest
from ..ir.foreign import Annotation, Instance
from .base import Exactness, Pass
from .name_table import NameTable

PassT = TypeVar("PassT", bound=type[Pass])

OTHER = "other"
PURPOSES = ("simplify", "fuse", "lay out", "narrow", "quantize", "prune", "factorize", OTHER)  # as lists show them

_PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class PassOption:
    """One option of a pass.

    Attributes
    ----------
    name, type
        As written in its class.
    default
        None together with ``required``.
    required
        Whether it must be given.
    choices
        The words that it takes, as pipelines write them; ``energy:SHARE`` takes a number. Empty if it takes any.
    summary
        What it decides.
    """

    name: str
    type: str
    default: Instance
    required: bool
    choices: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class PassInfo:
    """What `list_passes` tells of a pass."""

    name: str
    summary: str
    exactness: Exactness
    options: tuple[PassOption, ...]
    purpose: str = OTHER


@dataclass_transform(frozen_default=True)
def register_pass(name: str, purpose: str = OTHER) -> Callable[[PassT], PassT]:
    """Class decorator: make a class that derives from `Pass` a frozen dataclass, usable in pipelines under ``name``.

    ``purpose`` says which of `PURPOSES` it is listed under.

    Raises
    ------
    TersorError
        When the name is taken, the purpose is unknown, or the class is no pass.
    """

    def register(kind: PassT) -> PassT:
        if name in _PASSES:
            raise TersorError(f"pass {name!r} is registered twice; choose another name")
        if purpose not in PURPOSES:
            raise TersorError(f"pass {name!r} has the unknown purpose {purpose!r}{suggest(purpose, PURPOSES)}")
        if not issubclass(kind, Pass):
            raise TersorError(f"pass {name!r} must be a class that derives from tersor.passes.Pass")
        if "__dataclass_params__" not in vars(kind):
            dataclass(frozen=True)(kind)
        kind.name, kind.purpose = name, purpose
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
    return tuple(describe_pass(_PASSES[name]) for name in pass_names())


def describe_pass(kind: type[Pass]) -> PassInfo:
    """What is known of a pass from its class."""
    hints = get_type_hints(kind, include_extras=True)
    texts = _attribute_texts(kind)
    options = []
    for entry in fields(kind):
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        required = default is MISSING
        written = re.sub(r"Annotated\[(.+), \w+\]", r"\1", str(entry.type))
        shown = None if required else default
        options.append(
            PassOption(entry.name, written, shown, required, _choices(hints[entry.name]), texts.get(entry.name, ""))
        )
    summary = (kind.__doc__ or "").strip().split("\n", 1)[0]
    return PassInfo(kind.name, summary, kind.exactness, tuple(options), kind.purpose)


def _choices(hint: Annotation) -> tuple[str, ...]:
    """What an option takes: the members of an enum, or what its type is annotated with, members or a name table."""
    (allowed,) = getattr(hint, "__metadata__", (hint,))
    if isinstance(allowed, NameTable):
        return allowed.spellings()
    if isinstance(allowed, EnumType | tuple | frozenset):
        return tuple(sorted(str(member.value) for member in allowed))
    return ()


def _attribute_texts(kind: type[Pass]) -> dict[str, str]:
    """The texts under "Attributes" in a numpydoc docstring, by name."""
    lines = (inspect.getdoc(kind) or "").partition("Attributes\n----------\n")[2].splitlines()
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line.startswith(" "):
            text = line.strip().replace("``", "")
            texts.update({name: f"{texts.get(name, '')} {text}".strip() for name in names})
        else:
            names = [name.strip() for name in line.split(",")]
    return texts
