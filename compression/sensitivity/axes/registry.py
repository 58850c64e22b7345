"""Axes by name: ways to compress a layer, more or less of it.

An axis is a frozen dataclass in a file of its own, registered under the name that ``--axes`` says. Its only field is at
which settings layers are tried::

    @register_axis("channels")
    @dataclass(frozen=True)
    class ChannelAxis(SensitivityAxis):
        title = "share of a group's channels that goes"
        at: tuple[float, ...] = (0.25, 0.5, 0.75)

        def plans(self, graph, context):
            yield AxisPlan(graph, ...)

An axis looks at all layers and says how each is to be changed; what that does to the outputs is the sweep's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....ir import Graph, TersorError, suggest
from ....passes.name_table import NameTable
from ..variants import AxisPlan


@dataclass(frozen=True)
class AxisContext:
    """What an axis may look at besides the graph.

    Attributes
    ----------
    calibration
        Batches of inputs, which may be iterated repeatedly.
    criterion
        How important channels are.
    progress
        Told what is left, by axes that read the data.
    """

    calibration: Iterable[Sequence[torch.Tensor]]
    criterion: str
    progress: Callable[[str], None]


@dataclass(frozen=True)
class SensitivityAxis(ABC):
    """Base of the axes.

    Attributes
    ----------
    title
        What the settings are.
    at
        The settings, the smallest change first.
    """

    title: ClassVar[str]
    at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.at:
            raise ValueError("give at least one setting")
        for setting in self.at:
            self.check(setting)

    @abstractmethod
    def check(self, setting: float) -> None:
        """Raise ValueError for a setting that makes no sense."""

    @abstractmethod
    def plans(self, graph: Graph, context: AxisContext) -> Iterator[AxisPlan]:
        """What is to be measured, in parts, each of which is done before the next is planned.

        ``graph`` has no fused ops and fixed shapes, and stays as it is. The same plans come when asked again.
        """


AXES: NameTable[type[SensitivityAxis]] = NameTable("axis", family="sensitivity")

register_axis = AXES.register


def axis_names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return AXES.names()


def make_axis(name: str, settings: Mapping[str, Sequence[float]]) -> SensitivityAxis:
    """The axis of that name, at its own settings or those that are given for it.

    Raises
    ------
    TersorError
        When there is no such axis, or it does not take a setting.
    """
    if name not in AXES.entries:
        raise TersorError(f"axes: unknown axis {name!r}{suggest(name, AXES.entries)}")
    kind = AXES.entries[name]
    if name not in settings:
        return kind()
    try:
        return kind(tuple(settings[name]))
    except ValueError as error:
        raise TersorError(f"settings of axis {name}: {error}") from error
