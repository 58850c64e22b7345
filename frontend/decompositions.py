"""Operators that PyTorch does not decompose, or not well, as functions of others that have converters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.nn import functional

from . import histograms

aten = torch.ops.aten

_BILINEAR, _NEAREST = 0, 1  # modes of sampling; the third is bicubic
_ZEROS, _BORDER = 0, 1  # what lies outside; the third is the reflection


def sample_grid(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align_corners: bool) -> torch.Tensor:
    """``grid_sample`` of images and volumes: rows of a table with one row for each element of a plane.

    The channels of an element lie side by side, so that they are looked up together.
    """
    batch, channels, *extents = x.shape
    places = [
        _place(grid[..., len(extents) - 1 - axis], extent, padding, align_corners)
        for axis, extent in enumerate(extents)
    ]
    table = x.movedim(1, -1).reshape(-1, channels)
    first = torch.arange(batch).reshape(-1, *[1] * len(extents)) * math.prod(extents)
    corners = [_corners(place, mode) for place in places]
    total = torch.zeros((), dtype=x.dtype)
    for corner in itertools.product(*corners):
        rows, weight = first, None
        for axis, (index, share) in enumerate(corner):
            extent = extents[axis]
            if padding == _ZEROS:
                share = share * ((index >= 0) & (index <= extent - 1)).to(x.dtype)
            rows = rows + index.clamp(0, extent - 1).to(torch.int64) * math.prod(extents[axis + 1 :])
            weight = share if weight is None else weight * share
        assert weight is not None
        total = total + functional.embedding(rows, table) * weight[..., None]
    return total.movedim(-1, 1)


def _place(number: torch.Tensor, extent: int, padding: int, align_corners: bool) -> torch.Tensor:
    """Coordinates in elements from those in [-1, 1], which stay near the elements unless zeros lie around them."""
    place = (number + 1) / 2 * (extent - 1) if align_corners else ((number + 1) * extent - 1) / 2
    if padding == _ZEROS:
        return place
    if padding != _BORDER:
        low, span = (0.0, extent - 1) if align_corners else (-0.5, extent)
        if span == 0:
            return torch.zeros_like(place)
        beyond = (place - low).abs()
        turns = (beyond / span).floor()
        rest = beyond - turns * span
        is_even = turns - 2 * (turns / 2).floor() == 0
        place = torch.where(is_even, rest, span - rest) + low
    return place.clamp(0, extent - 1)


def _corners(place: torch.Tensor, mode: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Along one axis: elements that are looked up, and their shares."""
    if mode == _NEAREST:
        return [(place.round(), torch.ones_like(place))]
    low = place.floor()
    return [(low, low + 1 - place), (low + 1, place - low)]


def bilinear(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``sum over i, j of x[i] * weight[o, i, j] * y[j]``: one product with a matrix, then one with ``y``."""
    outputs, inputs, others = weight.shape
    rows = x @ weight.movedim(0, 1).reshape(inputs, outputs * others)
    result = (rows.reshape(*x.shape[:-1], outputs, others) @ y[..., None])[..., 0]
    return result if bias is None else result + bias


def segment_reduce(
    data: torch.Tensor,
    reduce: str,
    *,
    lengths: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> torch.Tensor:
    """Runs of rows, whose lengths or borders are given, each reduced to one row."""
    if lengths is None:
        assert offsets is not None  # PyTorch checks that there is one of them
        ends, lengths = offsets[..., 1:], offsets.diff()
    else:
        ends = lengths.cumsum(-1)
    if axis:
        raise NotImplementedError("segment_reduce along another axis than the first; transpose its operand")
    segment = torch.searchsorted(ends, torch.arange(data.shape[0]), right=True).clamp(max=len(ends) - 1)
    start = _OF_NO_ROWS[reduce] if initial is None else initial
    total = torch.full((len(ends), *data.shape[1:]), start, dtype=data.dtype)
    if reduce in ("sum", "mean"):
        total = total.index_add(0, segment, data)
    else:
        kind = {"max": "amax", "min": "amin"}.get(reduce, reduce)
        total = total.index_reduce(0, segment, data, kind, include_self=True)
    if reduce != "mean":
        return total
    count = lengths.reshape(-1, *[1] * (data.dim() - 1)).to(data.dtype)
    nothing = torch.full((), math.nan if initial is None else initial, dtype=data.dtype)
    return torch.where(count > 0, total / count, nothing)


_OF_NO_ROWS = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


def nonzero_static(x: torch.Tensor, *, size: int, fill_value: int = -1) -> torch.Tensor:
    """Where the first ``size`` elements that are not 0 lie [size, rank]; rows of ``fill_value`` behind the last one."""
    chosen = (x != 0).reshape(-1)
    count = min(size, len(chosen))
    if not count or not x.dim():
        kept = torch.full((count, x.dim()), fill_value)
    else:
        places = torch.sort(chosen, stable=True, descending=True).indices[:count]
        strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.dim())]
        columns = [places // stride % extent for stride, extent in zip(strides, x.shape, strict=True)]
        is_there = torch.arange(count) < chosen.sum()
        kept = torch.where(is_there[:, None], torch.stack(columns, 1), fill_value)
    return torch.cat([kept, torch.full((size - count, x.dim()), fill_value)])


def _grid_sampler_2d(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align_corners: bool) -> torch.Tensor:
    if mode in (_BILINEAR, _NEAREST):
        return sample_grid(x, grid, mode, padding, align_corners)
    from torch._decomp import decomposition_table

    return decomposition_table[aten.grid_sampler_2d.default](x, grid, mode, padding, align_corners)


DECOMPOSITIONS: dict[OpOverload, Callable[..., object]] = {
    aten.bilinear.default: bilinear,
    aten.histc.default: histograms.histc,
    aten.histogram.bin_ct: histograms.histogram,
    aten.histogram.bins_tensor: histograms.histogram_of_edges,
    aten._histogramdd_bin_edges.default: histograms.edges_of,
    aten._histogramdd_from_bin_cts.default: histograms.counts,
    aten._histogramdd_from_bin_tensors.default: histograms.counts_of_edges,
    aten.segment_reduce.default: segment_reduce,
    aten.nonzero_static.default: nonzero_static,
    aten.grid_sampler_2d.default: _grid_sampler_2d,
    aten.grid_sampler_3d.default: sample_grid,
}
