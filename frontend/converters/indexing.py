"""Operators that pick elements by integer tensors. All of them become rows of a table: an embedding.

Advanced indexing ``x[:, i, j]`` brings the indexed axes to the front, merges them into the rows of a table, and looks
up ``i * extent + j``; with constant indices the arithmetic is folded away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...ir import DType, Value
from ...ir.ops import AddOp, EmbeddingOp, LtOp, MulOp, WhereOp
from ..context import Context, axis_of
from ..registry import converter

aten = torch.ops.aten


@converter(aten.embedding.default)
def embedding(
    ctx: Context,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value:
    return ctx.emit(EmbeddingOp, weight, indices)


@converter(aten.index_select.default)
def index_select(ctx: Context, x: Value, dim: int, index: Value) -> Value:
    axis = axis_of(dim, len(x.shape))
    flat = ctx.reshape(index, (math.prod(index.shape),))
    return ctx.reshape(_pick(ctx, x, (axis,), ctx.cast(flat, DType.I64), flat.shape), ctx.result_type.shape)


@converter(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(ctx: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    axes = tuple(axis for axis, chosen in enumerate(indices) if chosen is not None)
    chosen = [value for value in indices if value is not None]
    if any(value.type.dtype in (DType.BOOL, DType.U8) for value in chosen):
        ctx.refuse("indexing by a mask, whose result has a shape that depends on the data; use torch.where")
    shape = tuple(torch.broadcast_shapes(*(value.shape for value in chosen)))
    rows = _linear(ctx, chosen, [x.shape[axis] for axis in axes])
    return _pick(ctx, x, axes, ctx.expand(rows, shape), shape)


@converter(aten.gather.default)
def gather(ctx: Context, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    if not x.shape:
        return ctx.reshape(x, index.shape)
    axis = axis_of(dim, len(x.shape))
    strides = [math.prod(x.shape[i + 1 :]) for i in range(len(x.shape))]
    start = torch.zeros(index.shape, dtype=torch.int64)
    for other in range(len(x.shape)):
        if other != axis:
            along = torch.arange(index.shape[other]) * strides[other]
            start += along.reshape(-1, *(1,) * (len(x.shape) - 1 - other))
    rows = ctx.cast(index, DType.I64)
    if strides[axis] != 1:
        rows = ctx.emit(MulOp, rows, ctx.operand(strides[axis], DType.I64))
    if len(x.shape) > 1:
        rows = ctx.emit(AddOp, rows, ctx.constant(start, "positions"))
    table = ctx.reshape(x, (math.prod(x.shape), 1))
    return ctx.reshape(ctx.emit(EmbeddingOp, table, rows), index.shape)


def take(ctx: Context, x: Value, axis: int, positions: Sequence[int]) -> Value:
    """Elements of ``x`` at constant positions along one axis."""
    rows = ctx.constant(torch.tensor(list(positions), dtype=torch.int64), "positions")
    return _pick(ctx, x, (axis,), rows, rows.shape)


def _linear(ctx: Context, indices: Sequence[Value], extents: Sequence[int]) -> Value:
    """One index into the merged axes from one index per axis; negative indices count from the end."""
    total: Value | None = None
    for position, (index, extent) in enumerate(zip(indices, extents, strict=True)):
        rows = ctx.cast(index, DType.I64)
        from_end = ctx.emit(AddOp, rows, ctx.operand(extent, DType.I64))
        rows = ctx.emit(WhereOp, ctx.emit(LtOp, rows, ctx.operand(0, DType.I64)), from_end, rows)
        stride = math.prod(extents[position + 1 :])
        if stride != 1:
            rows = ctx.emit(MulOp, rows, ctx.operand(stride, DType.I64))
        total = rows if total is None else ctx.emit(AddOp, total, rows)
    assert total is not None  # ATen has no indexing without an index
    return total


def _pick(ctx: Context, x: Value, axes: tuple[int, ...], rows: Value, shape: tuple[int, ...]) -> Value:
    """Look ``rows`` [shape] up in the merged ``axes`` of ``x``.

    The new dimensions stand where the indexed axes stood if those follow one another, else in front, as in NumPy.
    """
    rest = tuple(axis for axis in range(len(x.shape)) if axis not in axes)
    kept = tuple(x.shape[axis] for axis in rest)
    merged = ctx.permute(x, axes + rest)
    table = ctx.reshape(merged, (math.prod(x.shape[axis] for axis in axes), math.prod(kept)))
    result = ctx.reshape(ctx.emit(EmbeddingOp, table, rows), shape + kept)
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        return result
    rank, front = len(shape), axes[0]
    order = (*range(rank, rank + front), *range(rank), *range(rank + front, rank + len(kept)))
    return ctx.permute(result, order)
