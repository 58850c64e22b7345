"""Operators that pick elements by integer tensors: rows of a table.

Advanced indexing ``x[:, i, j]`` brings the indexed axes to the front, merges them into the rows of a table, and looks
up ``i * extent + j``; with constant indices the arithmetic is folded away. Views that no op of the IR expresses, a
diagonal say, are elements at positions that are known now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch._ops import OpOverload

from ...ir import DType, Value
from ...ir.ops import AddOp, EmbeddingOp, LtOp, MulOp, WhereOp
from ..context import Context, axis_of
from ..registry import Argument, Converter, converter, register_each

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
    rows = ctx.cast(ctx.reshape(index, (math.prod(index.shape),)), DType.I64)
    vector = x if x.shape else ctx.reshape(x, (1,))
    return ctx.reshape(_pick(ctx, vector, (axis_of(dim, len(x.shape)),), rows), ctx.result_type.shape)


@converter(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(ctx: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    axes, chosen = indexed(indices)
    if any(value.type.dtype in MASKS for value in chosen):
        ctx.refuse("indexing by a mask, whose result has a shape that depends on the data; use torch.where")
    return _pick(ctx, x, axes, linear_rows(ctx, chosen, [x.shape[axis] for axis in axes]))


@converter(aten.take.default)
def take_elements(ctx: Context, x: Value, index: Value) -> Value:
    rows = linear_rows(ctx, [index], [x.type.size])
    return ctx.reshape(ctx.emit(EmbeddingOp, as_column(ctx, x), rows), index.shape)


@converter(aten.gather.default)
def gather(ctx: Context, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    rows = element_rows(ctx, x, axis_of(dim, len(x.shape)), index)
    return ctx.reshape(ctx.emit(EmbeddingOp, as_column(ctx, x), rows), index.shape)


# Constant positions ---------------------------------------------------------------------------------------------


def _picked(view: OpOverload) -> Converter:
    def convert(ctx: Context, x: Value, *args: Argument, **options: Argument) -> Value:
        return take(ctx, ctx.reshape(x, (math.prod(x.shape),)), 0, positions_of(ctx, view, x, *args, **options))

    return convert


_VIEWS = (aten.diagonal.default, aten.as_strided.default, aten.unfold.default)
register_each({view: view for view in _VIEWS}, _picked)


def positions_of(ctx: Context, view: OpOverload, x: Value, *args: Argument, **options: Argument) -> torch.Tensor:
    """Where the elements of a view of ``x`` are among all of its elements."""
    numbers = torch.arange(math.prod(x.shape)).reshape(x.shape)
    if view is aten.as_strided.default:
        numbers = _as_in_memory(ctx, numbers)
    try:
        positions = view(numbers, *args, **options).contiguous()
    except RuntimeError:
        ctx.refuse(f"a view beyond the elements of {x.type}")
    if positions.numel() and positions.min() < 0:
        ctx.refuse("strides that reach memory of which the tensor is only a part; call .contiguous() first")
    return positions


def _as_in_memory(ctx: Context, numbers: torch.Tensor) -> torch.Tensor:
    """A tensor with the strides of the call's own, as far as its memory is known: -1 stands between its elements."""
    strides = numbers.stride() if ctx.row_major else ctx.strides
    if strides is None or any(extent > 1 and not step for extent, step in zip(numbers.shape, strides, strict=True)):
        ctx.refuse("strides of a tensor that is not contiguous; call .contiguous() first")
    if 0 in numbers.shape:
        return numbers
    last = sum((extent - 1) * step for extent, step in zip(numbers.shape, strides, strict=True))
    memory = torch.full((last + 1,), -1).as_strided(numbers.shape, strides)
    return memory.copy_(numbers)


def take(ctx: Context, x: Value, axis: int, positions: Sequence[int] | torch.Tensor) -> Value:
    """Elements of ``x`` at constant positions along one axis."""
    return _pick(ctx, x, (axis,), ctx.constant(torch.as_tensor(positions, dtype=torch.int64), "positions"))


# Tables ---------------------------------------------------------------------------------------------------------

MASKS = (DType.BOOL, DType.U8)


def indexed(indices: Sequence[Value | None]) -> tuple[tuple[int, ...], tuple[Value, ...]]:
    """The axes that are indexed, and by what."""
    chosen = {axis: value for axis, value in enumerate(indices) if value is not None}
    return tuple(chosen), tuple(chosen.values())


def linear_rows(ctx: Context, indices: Sequence[Value], extents: Sequence[int]) -> Value:
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


def _pick(ctx: Context, x: Value, axes: tuple[int, ...], rows: Value) -> Value:
    """Look ``rows`` [...] up in the merged ``axes`` of ``x``.

    The new dimensions stand where the indexed axes stood if those follow one another, else in front, as in NumPy.
    """
    table, kept, order = as_table(ctx, x, axes, rows)
    result = ctx.reshape(ctx.emit(EmbeddingOp, table, rows), rows.shape + kept)
    return ctx.permute(result, order)


def as_table(
    ctx: Context, x: Value, axes: tuple[int, ...], rows: Value
) -> tuple[Value, tuple[int, ...], tuple[int, ...]]:
    """``x`` as a table with the merged ``axes`` as its rows; the other extents; and how rows [..., other] turn."""
    rest = tuple(axis for axis in range(len(x.shape)) if axis not in axes)
    kept = tuple(x.shape[axis] for axis in rest)
    merged = ctx.permute(x, axes + rest)
    table = ctx.reshape(merged, (math.prod(x.shape[axis] for axis in axes), math.prod(kept)))
    rank, front = len(rows.shape), axes[0] if axes == tuple(range(axes[0], axes[-1] + 1)) else 0
    order = (*range(rank, rank + front), *range(rank), *range(rank + front, rank + len(kept)))
    return table, kept, order


def element_rows(ctx: Context, x: Value, axis: int, index: Value) -> Value:
    """Positions among all elements of ``x`` from positions along one axis, where the other coordinates are those."""
    rows = ctx.cast(index, DType.I64)
    if not x.shape:
        return rows
    strides = [math.prod(x.shape[i + 1 :]) for i in range(len(x.shape))]
    if strides[axis] != 1:
        rows = ctx.emit(MulOp, rows, ctx.operand(strides[axis], DType.I64))
    if len(x.shape) == 1:
        return rows
    start = torch.zeros(index.shape, dtype=torch.int64)
    for other, extent in enumerate(index.shape):
        if other != axis:
            start += (torch.arange(extent) * strides[other]).reshape(-1, *(1,) * (len(x.shape) - 1 - other))
    return ctx.emit(AddOp, rows, ctx.constant(start, "positions"))


def as_column(ctx: Context, x: Value) -> Value:
    return ctx.reshape(x, (math.prod(x.shape), 1))
