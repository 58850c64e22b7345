"""All entries of the zoo, by name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from . import convolutional, pictures, signals, transformer
from .entry import Entry

FILES = (pictures, signals, transformer, convolutional)


def _named(entries: Iterator[Entry]) -> dict[str, Entry]:
    table: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"two entries are called {entry.name}")
        table[entry.name] = entry
    return table


ZOO = _named(chain.from_iterable(file.entries() for file in FILES))
