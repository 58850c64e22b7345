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

from dataclasses import dataclass
from typing import Protocol

import torch

from ...name_table import NameTable, make_from_text


class RangeObserver(Protocol):
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

    def observer(self) -> RangeObserver:
        """A fresh observer for one activation."""
        raise NotImplementedError


CALIBRATORS: NameTable[type[Calibrator]] = NameTable("calibrator")

register_calibrator = CALIBRATORS.register


def parse_calibrator(text: str) -> Calibrator:
    """Read ``name`` or ``name:number``; raises ValueError that says what is wrong."""
    return make_from_text(CALIBRATORS, text, option="method")
