"""``ranks``: one layer becomes a chain of smaller ones, whose ranks are a share of the full ranks.

Each registered way to factorize is tried on all layers that it is made for (`tersor.passes.lowrank`), so a convolution
has a curve for each of them. What a chain costs in multiply-adds does not matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ....ir import Graph
from ....passes.lowrank import Candidate, find_candidates
from ....passes.lowrank.chain import Chain, alone
from ....passes.lowrank.methods import Ranks
from ....passes.lowrank.methods.registry import METHODS
from ....passes.lowrank.ranks.sensitivity import RANKS, rank_at
from ....passes.partial_runs import Change
from ....passes.sensitivity import layer_names, name_of_layer
from ..variants import AxisPlan, PlannedCurve, Variant
from .registry import AxisContext, SensitivityAxis, register_axis


@register_axis(RANKS)
@dataclass(frozen=True)
class RankAxis(SensitivityAxis):
    """Lower ranks of one layer."""

    title = "share of the full rank that stays"
    at: tuple[float, ...] = (0.75, 0.5, 0.375, 0.25, 0.125)

    def check(self, setting: float) -> None:
        if not 0 < setting < 1:
            raise ValueError(f"a share of the full rank that stays is above 0 and below 1, not {setting:g}")

    def plans(self, graph: Graph, context: AxisContext) -> Iterator[AxisPlan]:
        for method in METHODS.names():
            candidates, refused = find_candidates(graph, METHODS.find(method))
            names = layer_names([candidate.layers[0] for candidate in candidates])
            curves = tuple(self._curve(one, name, method) for one, name in zip(candidates, names, strict=True))
            yield AxisPlan(graph, curves, {name_of_layer(op): reason for op, reason in refused})

    def _curve(self, candidate: Candidate, name: str, method: str) -> PlannedCurve:
        size = tuple(spectrum.full for spectrum in candidate.factors.spectra)
        layers = tuple(map(name_of_layer, candidate.layers))
        variants = []
        for share in sorted(self.at, reverse=True):
            ranks = tuple(rank_at(share, full) for full in size)
            make = partial(_chained, candidate, ranks)
            detail = f"rank {'x'.join(map(str, ranks))} of {'x'.join(map(str, size))}"
            variants.append(Variant(f"{share * 100:.4g}%", share, detail, candidate.layers, make))
        return PlannedCurve(name, method, layers, size, tuple(variants))


def _chained(candidate: Candidate, ranks: Ranks) -> Change:
    chain = Chain.cut(candidate.factors, ranks)
    return Change(ops={op: partial(_evaluate, alone(op, chain)[1]) for op in candidate.layers})


def _evaluate(chain: Graph, x: torch.Tensor, *constants: torch.Tensor | None) -> torch.Tensor:
    (result,) = chain.evaluate(x)
    return result
