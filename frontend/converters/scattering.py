"""Operators that write elements where integer tensors or masks say: rows put into a table.

What `tersor.frontend.converters.indexing` picks is put back: replaced, or combined with what is there. Values for the
chosen elements of a mask are picked by the running count of chosen ones, so that no shape depends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch._ops import OpOverload

from ...ir import DType, Value, ops
from ..context import Context, Number, axis_of
from ..registry import Argument, Converter, converter, register_each
from .arithmetic import floor_divide
from .indexing import MASKS, as_column, as_table, element_rows, indexed, linear_rows, positions_of
from .windows import lowest

aten = torch.ops.aten
Combine = Callable[[Value, Value, str], Value]  # of a tensor, new elements, and how they are combined


@converter(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(
    ctx: Context, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> Value:
    axes, chosen = indexed(indices)
    if any(value.type.dtype in MASKS for value in chosen):
        return _put_by_mask(ctx, x, axes[0], chosen, values, accumulate)
    rows = linear_rows(ctx, chosen, [x.shape[axis] for axis in axes])
    table, kept, order = as_table(ctx, x, axes, rows)
    new = _as_rows(ctx, values, x.type.dtype, (*rows.shape, *kept), order)
    return _from_table(ctx, _scatter(ctx, table, rows, new, "sum" if accumulate else "replace"), x, axes)


def _as_rows(ctx: Context, values: Value, dtype: DType, shape: tuple[int, ...], order: tuple[int, ...]) -> Value:
    """Values as rows of a table, from the form in which they would be picked: ``shape`` turned by ``order``."""
    spread = ctx.expand(ctx.cast(values, dtype), [shape[dim] for dim in order])
    return ctx.permute(spread, _inverse(order))


def _from_table(ctx: Context, table: Value, x: Value, axes: tuple[int, ...]) -> Value:
    """A tensor of the shape of ``x`` from the table with its merged ``axes`` as rows."""
    moved = axes + tuple(axis for axis in range(len(x.shape)) if axis not in axes)
    return ctx.permute(ctx.reshape(table, [x.shape[axis] for axis in moved]), _inverse(moved))


def _inverse(order: tuple[int, ...]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _scatter(ctx: Context, table: Value, rows: Value, new: Value, combine: str) -> Value:
    rows = rows if rows.shape else ctx.reshape(rows, (1,))
    new = ctx.reshape(new, (*rows.shape, table.shape[1]))
    return ctx.emit(ops.ScatterOp, table, rows, new, attrs=ops.ScatterOp.attrs_type(combine))


# Masks ----------------------------------------------------------------------------------------------------------


def _put_by_mask(ctx: Context, x: Value, axis: int, indices: Sequence[Value], values: Value, accumulate: bool) -> Value:
    """``x[:, mask] = values`` with values for all chosen elements alike, or one for each."""
    mask, *others = indices
    if others or not mask.shape:
        ctx.refuse("writing by a mask and other indices; use torch.where")
    axes = tuple(range(axis, axis + len(mask.shape)))
    behind = len(x.shape) - axes[-1] - 1
    padded = (1,) * (behind + 1 - len(values.shape)) + values.shape
    lead, (count, *tail) = padded[: len(padded) - behind - 1], padded[len(padded) - behind - 1 :]
    chosen = ctx.cast(mask, DType.BOOL)
    if count != 1:
        table, kept, order = as_table(ctx, x, axes, ctx.reshape(mask, (mask.type.size,)))
        shape = (count, *kept)
        new = ctx.reshape(_as_rows(ctx, values, x.type.dtype, shape, order), (count, math.prod(kept)))
        return _from_table(ctx, _one_each(ctx, table, chosen, new, accumulate), x, axes)
    new = ctx.cast(ctx.reshape(values, (*lead, *[1] * len(mask.shape), *tail)), x.type.dtype)
    return _where(ctx, ctx.reshape(chosen, (*mask.shape, *[1] * behind)), new, x, accumulate)


def _one_each(ctx: Context, table: Value, mask: Value, new: Value, accumulate: bool) -> Value:
    """A table [N, D] whose chosen rows become the rows of ``new`` [K, D], one after another.

    There must be as many as are chosen, which PyTorch checks and a compiled model does not.
    """
    if not new.type.size:
        return table
    flat = ctx.reshape(mask, (mask.type.size,))
    counted = ctx.emit(ops.CumSumOp, ctx.cast(flat, DType.I64), attrs=ops.CumSumOp.attrs_type(axis=0))
    place = ctx.emit(ops.SubOp, counted, ctx.operand(1, DType.I64))
    inside = ctx.emit(ops.ClampOp, place, attrs=ops.ClampOp.attrs_type(min=0.0, max=float(new.shape[0] - 1)))
    picked = ctx.emit(ops.EmbeddingOp, new, inside)
    return _where(ctx, ctx.reshape(flat, (mask.type.size, 1)), picked, table, accumulate)


def _where(ctx: Context, mask: Value, new: Value, x: Value, accumulate: bool) -> Value:
    return ctx.emit(ops.WhereOp, mask, ctx.emit(ops.AddOp, x, new) if accumulate else new, x)


@converter(aten.masked_scatter.default)
def masked_scatter(ctx: Context, x: Value, mask: Value, source: Value) -> Value:
    shape = ctx.result_type.shape
    table, chosen = as_column(ctx, ctx.expand(x, shape)), ctx.expand(mask, shape)
    return ctx.reshape(_one_each(ctx, table, chosen, as_column(ctx, source), accumulate=False), shape)


# Elements -------------------------------------------------------------------------------------------------------


def _put_elements(ctx: Context, rows: Value) -> Combine:
    """Writes elements, of the shape of ``rows``, at those positions among all elements of a tensor."""

    def put(x: Value, new: Value, combine: str) -> Value:
        if not rows.type.size:
            return x
        table = _scatter(ctx, as_column(ctx, x), rows, ctx.cast(new, x.type.dtype), combine)
        return ctx.reshape(table, x.shape)

    return put


@converter(aten.put.default)
def put(ctx: Context, x: Value, index: Value, source: Value, accumulate: bool = False) -> Value:
    rows = linear_rows(ctx, [index], [x.type.size])
    return _put_elements(ctx, rows)(x, source, "sum" if accumulate else "replace")


@converter(aten.scatter_add.default)
def scatter_add(ctx: Context, x: Value, dim: int, index: Value, src: Value) -> Value:
    return scatter(ctx, x, dim, index, src, reduce="add")


@converter(aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce)
def scatter(ctx: Context, x: Value, dim: int, index: Value, src: Value | Number, *, reduce: str = "replace") -> Value:
    combine = {"add": "sum", "multiply": "prod"}.get(reduce, reduce)
    return _scatter_along(ctx, x, dim, index, src)(combine)


def _scatter_along(ctx: Context, x: Value, dim: int, index: Value, src: Value | Number) -> Callable[[str], Value]:
    new = _corner(ctx, src, index) if isinstance(src, Value) else ctx.full(src, x.type.with_shape(index.shape))
    put = _put_elements(ctx, element_rows(ctx, x, axis_of(dim, len(x.shape)), index))
    return lambda combine: put(x, new, combine)


def _corner(ctx: Context, src: Value, index: Value) -> Value:
    """As many elements along each axis as the index has."""
    for axis, extent in enumerate(index.shape):
        if src.shape:
            src = ctx.slice(src, axis, 0, extent)
    return src


@converter(aten.scatter_reduce.two)
def scatter_reduce(
    ctx: Context, x: Value, dim: int, index: Value, src: Value, reduce: str, *, include_self: bool = True
) -> Value:
    rows = element_rows(ctx, x, axis_of(dim, len(x.shape)), index)
    return _reduced(ctx, _put_elements(ctx, rows), x, _corner(ctx, src, index), reduce, include_self)


@converter(aten.index_reduce.default)
def index_reduce(
    ctx: Context, x: Value, dim: int, index: Value, source: Value, reduce: str, *, include_self: bool = True
) -> Value:
    axis = axis_of(dim, len(x.shape))
    along = [index.type.size if other == axis else 1 for other in range(len(x.shape))]
    spread = ctx.expand(ctx.reshape(index, along), source.shape)
    return scatter_reduce(ctx, x, dim, spread, source, reduce, include_self=include_self)


def _reduced(ctx: Context, put: Combine, x: Value, new: Value, reduce: str, include_self: bool) -> Value:
    """``x`` with what is put at each of its elements reduced to one number, of which the element itself may be one."""
    dtype, neutral = x.type.dtype, _NEUTRAL.get(reduce, lambda dtype: 0)
    start = x
    if not include_self:
        start = put(x, ctx.full(neutral(dtype), new.type.with_dtype(dtype)), "replace")
    if reduce != "mean":
        return put(start, new, reduce)
    one = ctx.full(1, new.type.with_dtype(dtype))
    counted = put(ctx.full(int(include_self), x.type), one, "sum")
    count = ctx.emit(ops.MaximumOp, counted, ctx.operand(1, dtype))
    total = put(start, new, "sum")
    return ctx.emit(ops.DivOp, total, count) if dtype.is_floating else floor_divide(ctx, total, count)


def _highest(dtype: DType) -> Number:
    """What no element is above."""
    if dtype.is_floating:
        return math.inf
    return 1 if dtype is DType.BOOL else torch.iinfo(dtype.torch).max


_NEUTRAL: dict[str, Callable[[DType], Number]] = {"prod": lambda dtype: 1, "amax": lowest, "amin": _highest}


# Constant positions ---------------------------------------------------------------------------------------------


def _written(view: OpOverload) -> Converter:
    def convert(ctx: Context, x: Value, src: Value, *args: Argument, **options: Argument) -> Value:
        positions = ctx.constant(positions_of(ctx, view, x, *args, **options), "positions")
        return _put_elements(ctx, positions)(x, src, "replace")

    return convert


register_each(
    {
        aten.diagonal_scatter.default: aten.diagonal.default,
        aten.as_strided_scatter.default: aten.as_strided.default,
    },
    _written,
)


def put_slice(ctx: Context, x: Value, axis: int, positions: range, new: Value) -> Value:
    """``x`` with ``new`` at constant positions along one axis."""
    outer, extent, width = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    rows = torch.arange(outer)[:, None] * extent + torch.tensor(list(positions), dtype=torch.int64)
    table = ctx.reshape(x, (outer * extent, width))
    return ctx.reshape(_scatter(ctx, table, ctx.constant(rows, "positions"), new, "replace"), x.shape)
