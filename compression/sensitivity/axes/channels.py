"""``channels``: a share of the channels of one group goes, the least important first.

They are set to zero with all that belongs to them, which the outputs cannot tell from their removal
(`tersor.passes.pruning`). At least one channel of a group stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....ir import Graph, Op
from ....ir.ops import WeightOp
from ....passes.partial_runs import Change
from ....passes.pruning import ChannelGroup, ChannelMap, Scoring, find_channels
from ....passes.pruning.criteria import score
from ....passes.pruning.equal_loss import CHANNELS, group_names
from ....passes.pruning.select import strongest
from ....passes.pruning.shrink import without_channels
from ....passes.sensitivity import name_of_layer
from ..variants import AxisPlan, PlannedCurve, Variant
from .registry import AxisContext, SensitivityAxis, register_axis


@register_axis(CHANNELS)
@dataclass(frozen=True)
class ChannelAxis(SensitivityAxis):
    """Fewer channels in one group."""

    title = "share of a group's channels that goes"
    at: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def check(self, setting: float) -> None:
        if not 0 < setting < 1:
            raise ValueError(f"a share of channels that goes is above 0 and below 1, not {setting:g}")

    def plans(self, graph: Graph, context: AxisContext) -> Iterator[AxisPlan]:
        channels = find_channels(graph)
        scores = score(context.criterion, channels.groups, Scoring(graph, context.calibration, seed=0))
        readers: dict[str, list[Op]] = defaultdict(list)
        for op in graph.ops:
            if isinstance(op, WeightOp):
                readers[op.attrs.id] += op.result.users
        curves = []
        for index, (group, name) in enumerate(zip(channels.groups, group_names(channels.groups), strict=True)):
            touched = tuple(dict.fromkeys(op for place in group.places for op in readers[place.weight]))
            variants = tuple(
                _variant(graph, channels, index, share, scores[index], touched) for share in sorted(self.at)
            )
            layers = tuple(map(name_of_layer, group.layers))
            curves.append(PlannedCurve(name, context.criterion, layers, (group.size,), variants))
        yield AxisPlan(graph, tuple(curves), {name_of_layer(op): reason for op, reason in channels.held})


def _variant(
    graph: Graph,
    channels: ChannelMap,
    index: int,
    share: float,
    scores: NDArray[np.float64],
    readers: Sequence[Op],
) -> Variant:
    group: ChannelGroup = channels.groups[index]
    gone = min(group.size - 1, int(share * group.size + 1e-9))
    kept = strongest(scores, group.size - gone)
    detail = f"{int(kept.sum()) * group.width} of {group.size * group.width} channels"
    make = partial(_without, graph, channels, index, kept) if gone else None
    return Variant(f"{share * 100:.4g}%", gone / group.size, detail, tuple(readers), make)


def _without(graph: Graph, channels: ChannelMap, index: int, kept: NDArray[np.bool_]) -> Change:
    masks = [np.ones(group.size, bool) for group in channels.groups]
    masks[index] = kept
    return Change(weights=without_channels(graph, channels, masks, {}))
