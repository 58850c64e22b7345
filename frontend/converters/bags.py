"""Bags of rows of a table: their sum, mean or maximum."""

from __future__ import annotations

import math

import torch

from ...ir import Value, ops
from ..context import Context
from ..expressions import Expression
from ..registry import Converted, converter

aten = torch.ops.aten
_SUM, _MEAN, _MAX = range(3)


@converter(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    ctx: Context,
    weight: Value,
    indices: Value,
    offsets: Value,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Converted:
    """The bag of a place is the last one that starts there or before; rows of the padding index do not count."""
    starts = ctx.slice(offsets, 0, 0, offsets.shape[0] - int(include_last_offset))
    places = ctx.constant(torch.arange(indices.type.size, dtype=starts.type.dtype.torch), "places")
    started = Expression(ctx, ctx.emit(ops.SearchOp, starts, places, attrs=ops.SearchOp.attrs_type(right=True)))
    bag = (started - 1).value
    column = (indices.type.size, 1)
    number = Expression(ctx, ctx.reshape(indices, column))
    counts = number.differs(padding_idx if padding_idx >= 0 else -1)
    rows = Expression(ctx, ctx.emit(ops.EmbeddingOp, weight, indices))
    if per_sample_weights is not None:
        rows = rows * Expression(ctx, ctx.reshape(per_sample_weights, column))
    combine, neutral = ("amax", -math.inf) if mode == _MAX else ("sum", 0.0)

    def collected(new: Expression) -> Expression:
        start = ctx.full(neutral, new.value.type.with_shape((starts.shape[0], new.value.shape[1])))
        return Expression(ctx, ctx.emit(ops.ScatterOp, start, bag, new.value, attrs=ops.ScatterOp.attrs_type(combine)))

    total = collected(counts.choose(rows, neutral))
    if mode == _MAX:
        is_empty = collected(counts.choose(counts.cast(rows.dtype), neutral)).equals(neutral)
        total = is_empty.choose(total.number(0.0), total)
    if mode == _MEAN:
        total = total / collected(counts.cast(rows.dtype)).apply(ops.MaximumOp, 1)
    return total.value, None, None, None
