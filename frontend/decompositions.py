"""Operators that PyTorch does not decompose, or not well, as functions of others that have converters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.nn import functional

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


def histc(x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    """How many elements lie in each of ``bins`` intervals of one length, the last of which is closed."""
    low, high = torch.full((), min, dtype=x.dtype), torch.full((), max, dtype=x.dtype)
    if min == max:
        low, high = x.amin(), x.amax()
        is_point = low == high
        low, high = torch.where(is_point, low - 1, low), torch.where(is_point, high + 1, high)
    place = ((x - low) * bins / (high - low)).clamp(0, bins - 1).to(torch.int64)
    is_inside = (x >= low) & (x <= high)
    return torch.zeros(bins, dtype=x.dtype).index_put((place,), is_inside.to(x.dtype), accumulate=True)


def _grid_sampler_2d(x: torch.Tensor, grid: torch.Tensor, mode: int, padding: int, align_corners: bool) -> torch.Tensor:
    if mode in (_BILINEAR, _NEAREST):
        return sample_grid(x, grid, mode, padding, align_corners)
    from torch._decomp import decomposition_table

    return decomposition_table[aten.grid_sampler_2d.default](x, grid, mode, padding, align_corners)


DECOMPOSITIONS: dict[OpOverload, Callable[..., torch.Tensor]] = {
    aten.bilinear.default: bilinear,
    aten.histc.default: histc,
    aten.grid_sampler_2d.default: _grid_sampler_2d,
    aten.grid_sampler_3d.default: sample_grid,
}
