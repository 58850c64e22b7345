"""Histograms of one and more dimensions: elements are looked up between the edges of bins, and added up by bins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def histc(x: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    """How many elements lie in each of ``bins`` intervals of one length, the last of which is closed."""
    low, high = torch.full((), min, dtype=x.dtype), torch.full((), max, dtype=x.dtype)
    if min == max:
        low, high = _unequal(x.amin(), x.amax(), 1)
    place = ((x - low) * bins / (high - low)).clamp(0, bins - 1).to(torch.int64)
    is_inside = (x >= low) & (x <= high)
    return torch.zeros(bins, dtype=x.dtype).index_put((place,), is_inside.to(x.dtype), accumulate=True)


def _unequal(low: torch.Tensor, high: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    is_point = low == high
    return torch.where(is_point, low - step, low), torch.where(is_point, high + step, high)


def edges_of(
    x: torch.Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: torch.Tensor | None = None,
    density: bool = False,
) -> list[torch.Tensor]:
    """Edges of bins of one length for each coordinate of points [..., D], between ``range`` or the extrema."""
    points = x.reshape(-1, x.shape[-1])
    edges = []
    for axis, count in enumerate(bins):
        if range is not None:
            low, high = (torch.full((), float(one), dtype=x.dtype) for one in range[2 * axis : 2 * axis + 2])
        elif points.shape[0]:
            low, high = points[:, axis].amin(), points[:, axis].amax()
        else:
            low, high = torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype)
        low, high = _unequal(low, high, 0.5)
        place = torch.arange(count + 1)
        width = (high - low) / count
        edges.append(torch.where(place < (count + 1) // 2, low + width * place, high - width * (count - place)))
    return edges


def counts_of_edges(
    x: torch.Tensor, bins: Sequence[torch.Tensor], *, weight: torch.Tensor | None = None, density: bool = False
) -> torch.Tensor:
    """The total weight of the points [..., D] in each bin between edges; all but the last bins are open on the right.

    With ``density``, the integral over all bins is 1.
    """
    points = x.reshape(-1, x.shape[-1])
    extents = [len(edges) - 1 for edges in bins]
    place, is_inside = torch.zeros(points.shape[0], dtype=torch.int64), torch.ones(points.shape[0], dtype=torch.bool)
    for axis, (edges, count) in enumerate(zip(bins, extents, strict=True)):
        number = points[:, axis].contiguous()
        found = torch.searchsorted(edges, number, right=True) - 1
        place = place * count + found.clamp(0, count - 1)
        is_inside = is_inside & (number >= edges[0]) & (number <= edges[-1])
    share = is_inside.to(x.dtype) if weight is None else torch.where(is_inside, weight.reshape(-1), 0)
    total = torch.zeros(math.prod(extents), dtype=x.dtype).index_put((place,), share, accumulate=True).reshape(extents)
    if not density:
        return total
    total = total / total.sum()
    for axis, edges in enumerate(bins):
        total = total / edges.diff().reshape(-1, *[1] * (len(bins) - axis - 1))
    return total


def counts(
    x: torch.Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: torch.Tensor | None = None,
    density: bool = False,
) -> torch.Tensor:
    """`counts_of_edges` for `edges_of`."""
    return counts_of_edges(x, edges_of(x, bins, range=range), weight=weight, density=density)


def histogram(
    x: torch.Tensor,
    bins: int = 100,
    *,
    range: Sequence[float] | None = None,
    weight: torch.Tensor | None = None,
    density: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the elements: totals in bins, and the edges of these."""
    edges = edges_of(x.reshape(-1, 1), [bins], range=range)
    return histogram_of_edges(x, edges[0], weight=weight, density=density)


def histogram_of_edges(
    x: torch.Tensor, bins: torch.Tensor, *, weight: torch.Tensor | None = None, density: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the elements: totals in bins between edges, and these."""
    return counts_of_edges(x.reshape(-1, 1), [bins], weight=weight, density=density), bins.clone()
