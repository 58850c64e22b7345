"""Training between rounds of pruning: what a user's function makes of the smaller network, in the extents of the whole.

The function gets a module (`tersor.ir.Graph.to_torch`) of the network as pruned so far, and trains it in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...ir import Graph, TersorError
from ...ir.imports import one_line
from ...ir.ops import WeightOp
from .groups import ChannelMap
from .shrink import Numbers, shrunk

Train = Callable[[nn.Module], object]


class _Trainable(Protocol):
    def numbers_by_id(self) -> dict[str, torch.Tensor]: ...


def trained(
    graph: Graph, channels: ChannelMap, kept: NDArray[np.bool_], numbers: Numbers, train: Train
) -> dict[str, torch.Tensor]:
    """Train the network without the channels that went; returns all its weights, with zeros where channels are gone.

    Raises
    ------
    TersorError
        When the user's function raises, or leaves numbers behind that are not finite; the weight is named.
    """
    small = shrunk(graph, channels, kept, numbers)
    module = small.to_torch()
    name = getattr(train, "__name__", "it")
    try:
        train(module)
    except Exception as error:  # the user's own code
        raise TersorError(f"train: {name} raised {type(error).__name__}: {one_line(error)}") from error
    found = cast(_Trainable, module).numbers_by_id()
    result = {}
    weights, cut_weights = ([op for op in one.ops if isinstance(op, WeightOp)] for one in (graph, small))
    for op, cut_op in zip(weights, cut_weights, strict=True):
        tensor = found[cut_op.attrs.id].detach().cpu()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TersorError(f"train: {name} left numbers in {op.attrs.id!r} that are not finite")
        whole = torch.zeros(op.result.shape, dtype=tensor.dtype)
        at = [torch.from_numpy(np.flatnonzero(kept[dim])) for dim in channels.classes[op.result]]
        if at:
            whole[torch.meshgrid(*at, indexing="ij")] = tensor
        result[op.attrs.id] = whole if at else tensor
    return result
