"""Operators that pick elements by integer tensors, or write there. Negative indices count from the end."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..known import is_known, known, refuse
from ..registry import operator

Tensor = torch.Tensor


def _positive(indices: Tensor, extent: int) -> Tensor:
    rows = indices.to(torch.int64)
    return torch.where(rows < 0, rows + extent, rows)


@operator("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.ndim
    if is_known(indices) and not indices.ndim:
        return x.select(axis, int(indices))
    rows = _positive(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, rows).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return torch.gather(x, axis, _positive(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    return x[_places(x, indices, batch_dims)]


# ONNX's names of reductions, and PyTorch's.
_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """Those reductions that writing at indices does not have are made on all elements in a row."""
    places = _places(x, indices, 0)
    if reduction in ("none", "add"):
        return torch.index_put(x, places, updates, accumulate=reduction == "add")
    numbers = torch.arange(x.numel()).reshape(x.shape)[places]
    return scatter_elements(x.reshape(-1), numbers.reshape(-1), updates.reshape(-1), reduction=reduction).reshape(
        x.shape
    )


def _places(x: Tensor, indices: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """One tensor of indices for each axis: first of the axes of the batch, then what the last axis lists."""
    batch = [
        torch.arange(extent).reshape(-1, *[1] * (indices.ndim - 2 - axis))
        for axis, extent in enumerate(indices.shape[:batch_dims])
    ]
    listed = [_positive(indices[..., i], x.shape[batch_dims + i]) for i in range(indices.shape[-1])]
    return *batch, *listed


@operator("ScatterElements", "Scatter")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    rows = _positive(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, rows, updates)
    if reduction not in _REDUCTIONS:
        refuse(f"reduction {reduction!r}")
    return torch.scatter_reduce(x, axis, rows, updates, _REDUCTIONS[reduction])


@operator("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    known(condition)
    rows = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1).index_select(0, rows) if axis is None else x.index_select(axis, rows)


@operator("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    steps = torch.arange(x.shape[time_axis])
    ends = lengths[:, None]
    order = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    rows = order.reshape(*order.shape, *[1] * (x.ndim - 2)).expand(moved.shape)
    return torch.gather(moved, 1, rows).movedim((0, 1), (batch_axis, time_axis))


@operator("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return functional.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))
