"""What an axis plans: a graph, and for each of its layers the ways in which that layer alone is to be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...ir import Graph, Op
from ...passes.partial_runs import Change


@dataclass(frozen=True)
class Variant:
    """A layer at one setting.

    Attributes
    ----------
    label, value, detail
        See `tersor.passes.sensitivity.LossPoint`.
    readers
        The ops that compute something else: nothing before the first of them changes.
    make
        Makes the change when it is wanted, so that one is held at a time; None where nothing changes.
    """

    label: str
    value: float
    detail: str
    readers: tuple[Op, ...]
    make: Callable[[], Change] | None


@dataclass(frozen=True)
class PlannedCurve:
    """A layer, or a group of layers, at all settings.

    Attributes
    ----------
    name, kind, layers, size
        See `tersor.passes.sensitivity.LossCurve`.
    variants
        The smallest change first.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    size: tuple[int, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class AxisPlan:
    """Curves that are measured on one graph.

    Attributes
    ----------
    graph
        Without fused ops; its outputs are what changes are compared with.
    curves
        In execution order.
    left
        Layers that cannot be changed, by name, with reasons.
    """

    graph: Graph
    curves: tuple[PlannedCurve, ...]
    left: Mapping[str, str] = field(default_factory=dict)
