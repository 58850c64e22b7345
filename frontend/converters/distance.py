"""Distances between points."""

from __future__ import annotations

import torch

from ...ir import Value
from ...ir.ops import DistanceOp
from ..context import Context
from ..registry import converter
from .indexing import take

aten = torch.ops.aten


@converter(aten._cdist_forward.default)
def cdist(ctx: Context, x: Value, y: Value, p: float, compute_mode: int | None) -> Value:
    batch = ctx.result_type.shape[:-2]
    points = (ctx.expand(ctx.cast(one, ctx.dtype), (*batch, *one.shape[-2:])) for one in (x, y))
    return ctx.emit(DistanceOp, *points, attrs=DistanceOp.attrs_type(float(p)))


@converter(aten._euclidean_dist.default)
def euclidean_distance(ctx: Context, x: Value, y: Value) -> Value:
    return cdist(ctx, x, y, 2.0, None)


@converter(aten._pdist_forward.default)
def pdist(ctx: Context, x: Value, p: float = 2.0) -> Value:
    """Distances of the pairs of rows, each pair once."""
    count = x.shape[0]
    first, second = torch.triu_indices(count, count, 1)
    pairs = ctx.emit(DistanceOp, x, x, attrs=DistanceOp.attrs_type(float(p)))
    return take(ctx, ctx.reshape(pairs, (count * count,)), 0, first * count + second)
