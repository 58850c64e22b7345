"""Variants of a pass by the name that pipelines say: criteria, methods, rank rules, calibrators.

Each kind has one `NameTable`, in the ``registry.py`` of its package. Importing the file of a variant enters it, so that
one more variant is one more file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from ..ir import TersorError, suggest
from .options import convert

EntryT = TypeVar("EntryT")
KindT = TypeVar("KindT")


@dataclass(eq=False)
class NameTable(Generic[EntryT]):
    """What is registered under which name.

    Attributes
    ----------
    noun
        What messages call an entry, such as ``"criterion"``.
    family
        Put before the noun where the pass is not known from the context, such as ``"pruning"``; may be empty.
    entries
        The entries by name.
    """

    noun: str
    family: str = ""
    entries: dict[str, EntryT] = field(default_factory=dict)

    def register(self, name: str) -> Callable[[EntryT], EntryT]:
        """Decorator: make an entry usable in pipelines; raises TersorError when the name is taken."""

        def enter(entry: EntryT) -> EntryT:
            if name in self.entries:
                label = f"{self.family} {self.noun}".lstrip()
                raise TersorError(f"{label} {name!r} is registered twice; choose another name")
            self.entries[name] = entry
            return entry

        return enter

    def find(self, name: str) -> EntryT:
        """The entry registered under ``name``; raises ValueError that suggests the nearest name."""
        if name not in self.entries:
            raise ValueError(f"unknown {self.noun} {name!r}{suggest(name, self.entries)}")
        return self.entries[name]

    def spellings(self) -> tuple[str, ...]:
        """All names as pipelines write them, with the number that some take: ``energy:SHARE``."""
        parameters = {n: fields(e)[:1] if is_dataclass(e) else () for n, e in sorted(self.entries.items())}
        return tuple(f"{n}:{p[0].name.upper()}" if p else n for n, p in parameters.items())

    def names(self) -> tuple[str, ...]:
        """All registered names, sorted."""
        return tuple(sorted(self.entries))


def make_from_text(table: NameTable[type[KindT]], text: str, option: str) -> KindT:
    """Read ``name`` or ``name:number``, where the number is for the only field of the dataclass of that name.

    Parameters
    ----------
    table
        Of dataclasses with at most one field.
    text
        What the pipeline says.
    option
        The pass option that holds the text, for messages.

    Raises
    ------
    ValueError
        When the name is unknown, when the number is missing, does not belong there or is refused by the dataclass.
    """
    name, colon, number = text.partition(":")
    if name not in table.entries:
        raise ValueError(f"unknown {table.noun} {text!r}{suggest(name, table.spellings())}")
    kind: Any = table.entries[name]
    parameters = fields(kind)
    if not parameters:
        if colon:
            raise ValueError(f"{table.noun} {name} takes no number, got {text!r}")
        return kind()
    parameter = parameters[0]
    if not number and parameter.default is MISSING:
        raise ValueError(f"{table.noun} {name} needs a number: {name}:{parameter.name.upper()}")
    if not colon:
        return kind()
    try:
        return kind(convert(number, get_type_hints(kind)[parameter.name]))
    except ValueError as error:
        raise ValueError(f"{option}={text}: {error}") from None
