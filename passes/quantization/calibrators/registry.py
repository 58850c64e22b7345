"""Calibrators by name: the range of an activation that integers are to cover, from the numbers that it takes.

A calibrator is a frozen dataclass in a file of its own, registered under the name that pipelines say, with at most one
field, which is written behind a colon and has a default::

    @register_calibrator("percentile")
    @dataclass(frozen=True)
    class Percentile(Calibrator):
        percent: float = 99.99                      # percentile:99.99

        def observer(self):
            return ...                              # one for each activation; sees its batches one after another
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar, get_type_hints

import torch

from ....ir import TersorError, suggest
from ...options import convert


class Observer(Protocol):
    """Sees one activation batch by batch, in bounded memory."""

    def observe(self, numbers: torch.Tensor) -> None:
        """Take in one batch: an f32 tensor of finite numbers, at least one."""
        ...

    def range(self) -> tuple[float, float]:
        """Smallest and largest number to be covered, after at least one batch."""
        ...


@dataclass(frozen=True)
class Calibrator:
    """Base of the calibrators."""

    def observer(self) -> Observer:
        """A fresh observer for one activation."""
        raise NotImplementedError


CalibratorT = TypeVar("CalibratorT", bound=type[Calibrator])

_CALIBRATORS: dict[str, type[Calibrator]] = {}


def register_calibrator(name: str) -> Callable[[CalibratorT], CalibratorT]:
    """Class decorator: make a calibrator usable in pipelines; raises TersorError when the name is taken."""

    def register(calibrator: CalibratorT) -> CalibratorT:
        if name in _CALIBRATORS:
            raise TersorError(f"calibrator {name!r} is registered twice; choose another name")
        _CALIBRATORS[name] = calibrator
        return calibrator

    return register


def parse_calibrator(text: str) -> Calibrator:
    """Read ``name`` or ``name:number``; raises ValueError that says what is wrong."""
    name, colon, number = text.partition(":")
    if name not in _CALIBRATORS:
        raise ValueError(f"unknown calibrator {name!r}{suggest(name, _CALIBRATORS)}")
    kind = _CALIBRATORS[name]
    if not colon:
        return kind()
    names = [entry.name for entry in fields(kind)]
    if not names:
        raise ValueError(f"calibrator {name} takes no number, got {text!r}")
    try:
        return kind(convert(number, get_type_hints(kind)[names[0]]))
    except ValueError as error:
        raise ValueError(f"method={text}: {error}") from None


def calibrator_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_CALIBRATORS))
