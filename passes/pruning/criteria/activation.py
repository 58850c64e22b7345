"""``activation-mean`` and ``activation-zeros``: how large channels are on data, and how often they are not zero.

Of each layer that reads a channel (`readers`), the mean magnitude of what it reads, or the share of it that is not
zero, is divided by the mean over the group's channels; a channel's score is the mean over the layers. The share of
zeros tells most behind a ReLU.

Mean: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017. Zeros: Hu
et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ....ir import Op, TersorError, Value, evaluate
from ..groups import ChannelGroup
from ..readers import readers_of
from .registry import Scores, Scoring, mean_of_relative, means, on_data, register_criterion


@register_criterion("activation-mean")
@on_data
def activation_mean(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    return _score(groups, scoring, torch.abs)


@register_criterion("activation-zeros")
@on_data
def activation_zeros(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[Scores]:
    """See the module."""
    return _score(groups, scoring, lambda x: x != 0)


def _score(
    groups: Sequence[ChannelGroup], scoring: Scoring, measure: Callable[[torch.Tensor], torch.Tensor]
) -> list[Scores]:
    readers = scoring.readers
    axes = {reader.x: reader.axis for reader in readers}
    sums: dict[Value, torch.Tensor] = {}

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(op.results, results, strict=True):
            if value in axes:
                if not bool(tensor.isfinite().all()):
                    raise TersorError(f"calibration data leads to activations that are not finite at {op.describe()}")
                others = [dim for dim in range(tensor.ndim) if dim != axes[value]]
                found = measure(tensor).double()
                sums[value] = (found.sum(others) if others else found) + sums.get(value, 0.0)

    for batch in scoring.batches():
        evaluate(scoring.graph, batch, observe)
    return [
        mean_of_relative(
            [means(one.positions(group), sums[one.x], group.size) for one in readers_of(group, readers)], group.size
        )
        for group in groups
    ]
