"""``zeros``: a share of the weights of one layer becomes zero, the smallest first.

Which weights are zero does not depend on their neighbours, as in ``prune-weights{pattern=single,criterion=l1}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ....ir import Graph
from ....passes.sensitivity import layer_names, name_of_layer
from ....passes.sparsity.patterns import parse_pattern
from ....passes.sparsity.shares import ZEROS
from ....passes.sparsity.weights import LayerWeight, find_weights
from ..variants import AxisPlan, Change, PlannedCurve, Variant
from .registry import AxisContext, SensitivityAxis, register_axis

_PATTERN = parse_pattern("single")


@register_axis(ZEROS)
@dataclass(frozen=True)
class ZeroAxis(SensitivityAxis):
    """Zeros in one layer's weight."""

    title = "share of a layer's weights that becomes zero"
    at: tuple[float, ...] = (0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95)

    def check(self, setting: float) -> None:
        if not 0 < setting < 1:
            raise ValueError(f"a share of weights that becomes zero is above 0 and below 1, not {setting:g}")

    def plans(self, graph: Graph, context: AxisContext) -> Iterator[AxisPlan]:
        weights, refused = find_weights(graph, _PATTERN)
        names = layer_names([weight.layers[0] for weight in weights])
        curves = tuple(self._curve(name, weight) for name, weight in zip(names, weights, strict=True))
        yield AxisPlan(graph, curves, {name_of_layer(op): reason for op, reason in refused})

    def _curve(self, name: str, weight: LayerWeight) -> PlannedCurve:
        layers = tuple(map(name_of_layer, weight.layers))
        variants = tuple(_variant(weight, share) for share in sorted(self.at))
        return PlannedCurve(name, "l1", layers, tuple(weight.numbers.shape), variants)


def _variant(weight: LayerWeight, share: float) -> Variant:
    total = weight.numbers.numel()
    gone = int(share * total + 1e-9)
    make = partial(_without, weight, gone) if gone else None
    return Variant(f"{share * 100:.4g}%", gone / total, f"{total - gone} of {total} weights", weight.layers, make)


def _without(weight: LayerWeight, gone: int) -> Change:
    kept = _PATTERN.kept(weight.numbers.abs().flatten(), weight.numbers.shape, gone)
    return Change(weights={weight.id: torch.where(kept, weight.numbers, 0)})
