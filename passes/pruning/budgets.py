"""What pruning may leave: a share of the multiply-adds, of the parameters, or of the channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir import Graph
from ...ir.ops import WeightOp
from .groups import ChannelMap

Count = Callable[[NDArray[np.bool_]], int]  # of a mask over `ChannelMap.classes`

_NOUNS = {"macs": "multiply-adds", "params": "parameters", "latency": "measured time"}


def check_left(**options: float | None) -> None:
    """Raise ValueError for an option, by name, that is no ratio to leave of what it counts; None stands for any."""
    for name, left in options.items():
        if left is not None and not 0 < left < 1:
            raise ValueError(f"{name} is the ratio of {_NOUNS[name]} to leave, above 0 and below 1, not {left:g}")


@dataclass(frozen=True)
class Remainder:
    """A share of something that may be left.

    Attributes
    ----------
    option
        As the user wrote it, for messages.
    noun
        What is counted.
    left
        The share that may be left, above 0 and below 1.
    count
        What is left with a mask of the channels that stay.
    whole
        What there is with all channels.
    advice
        What to ask for where it cannot be met.
    """

    option: str
    noun: str
    left: float
    count: Count
    whole: int
    advice: str

    def share(self, kept: NDArray[np.bool_]) -> float:
        """What is left, as a share."""
        return self.count(kept) / max(1, self.whole)

    def is_met(self, kept: NDArray[np.bool_]) -> bool:
        """Whether no more is left than may be."""
        return self.count(kept) <= self.left * self.whole


def macs_budget(channels: ChannelMap, left: float) -> Remainder:
    """Multiply-adds."""
    whole = channels.macs(np.ones(channels.count, bool))
    return Remainder(f"macs={left:g}", "multiply-adds", left, channels.macs, whole, "more macs")


def params_budget(graph: Graph, channels: ChannelMap, left: float) -> Remainder:
    """Numbers in the weights that the graph reads, shared ones once."""
    weights = {op.attrs.id: channels.classes[op.result] for op in graph.ops if isinstance(op, WeightOp)}

    def count(kept: NDArray[np.bool_]) -> int:
        return sum(math.prod(int(kept[dim].sum()) for dim in dims) for dims in weights.values())

    whole = count(np.ones(channels.count, bool))
    return Remainder(f"params={left:g}", "parameters", left, count, whole, "more params")


def channels_budget(channels: ChannelMap, left: float) -> Remainder:
    """Channels of all groups that can shrink; ``ratio`` says what goes, not what is left."""

    def count(kept: NDArray[np.bool_]) -> int:
        return sum(int(kept[group.channels].sum()) * group.width for group in channels.groups)

    whole = count(np.ones(channels.count, bool))
    return Remainder(f"ratio={1 - left:g}", "channels", left, count, whole, "a lower ratio")
