"""Numbers for each input channel of a layer: multiplying them into its weight, and how large its weights are.

A layer that reads ``x / s`` with weights ``W s``, channel by channel, computes what it computed from ``x`` and ``W``.
So numbers can be moved between an activation and the weights that read it.
"""

from __future__ import annotations

import torch

from ...ir import Op
from ...ir.ops import AvgPool2dOp, LayerOp, LeakyReluOp, LinearOp, MaxPool2dOp, MeanOp, ReluOp, ReshapeOp


def input_axis(op: LayerOp) -> int:
    """The dimension of the operand that holds its channels, counted from the end."""
    return -1 if isinstance(op, LinearOp) else 1 - op.x.type.rank


def output_axis(op: LayerOp) -> int:
    """The dimension of the result that holds its channels, counted from the end."""
    rank = op.result.type.rank
    return op.channel_axis % rank - rank


def is_equivariant(op: Op, axis: int) -> bool:
    """Whether positive factors along dimension ``axis`` of the operand, counted from the end, pass through ``op``."""
    if isinstance(op, MeanOp):
        return op.attrs.keepdim and axis % op.x.type.rank not in op.attrs.axes
    if isinstance(op, ReshapeOp):
        shape = op.x.shape
        return axis == 1 - len(shape) and set(shape[2:]) <= {1} and op.result.shape == shape[:2]
    if isinstance(op, MaxPool2dOp | AvgPool2dOp):
        return axis == -3
    return isinstance(op, ReluOp | LeakyReluOp)


def axis_behind(op: Op, axis: int) -> int:
    """Where the factors are in the result of an equivariant op: a reshape drops extents of 1 behind the channels."""
    return axis + op.inputs[0].type.rank - op.result.type.rank


def per_channel(factors: torch.Tensor, axis: int) -> torch.Tensor:
    """A vector as it broadcasts along a dimension that is counted from the end."""
    return factors.reshape(-1, *[1] * (-1 - axis))


def channel_maxima(numbers: torch.Tensor, axis: int) -> torch.Tensor:
    """The largest magnitude of each channel."""
    kept = axis % numbers.ndim
    return numbers.abs().amax([dim for dim in range(numbers.ndim) if dim != kept])


def multiply_inputs(op: LayerOp, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """A weight [O, I/groups, ...] of ``op`` for an operand whose channels are divided by ``factors`` [I]."""
    return weight * _spread(op, weight, factors)


def input_weight_maxima(op: LayerOp, weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude among the weights that read each input channel, [I]."""
    groups, outputs = op.channel_groups, weight.shape[0]
    largest = weight.abs().reshape(groups, outputs // groups, weight.shape[1], -1)
    return largest.amax((1, 3)).flatten()


def _spread(op: LayerOp, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """``factors`` [I] as they broadcast to a weight [O, I/groups, ...]."""
    groups = op.channel_groups
    rows = factors.reshape(groups, weight.shape[1]).repeat_interleave(weight.shape[0] // groups, 0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
