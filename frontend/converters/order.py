"""Running totals, sorting, what stands at a place of the order, and looking up in what is sorted."""

from __future__ import annotations

import math

import torch

from ...ir import DType, Op, Value, ops
from ..context import Context, Number, axis_of
from ..expressions import Expression
from ..registry import Converted, Converter, converter, register_each
from .indexing import gather, take

aten = torch.ops.aten


def _scan(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: int, **options: object) -> Value:
        given = ctx.cast(x, ctx.dtype)
        return _along(ctx, kind, given, dim)

    return convert


def _along(ctx: Context, kind: type[Op], x: Value, dim: int, **attrs: int) -> Value:
    """An op along one axis; a tensor of rank 0 has one, too."""
    line = x if x.shape else ctx.reshape(x, (1,))
    result = ctx.emit(kind, line, attrs=kind.attrs_type(axis=axis_of(dim, len(x.shape)), **attrs))
    return result if x.shape else ctx.reshape(result, ())


register_each(
    {
        aten.cumsum.default: ops.CumSumOp,
        aten.cumprod.default: ops.CumProdOp,
        aten.logcumsumexp.default: ops.LogCumSumExpOp,
    },
    _scan,
)


def _scan_with_places(kinds: tuple[type[Op], type[Op]]) -> Converter:
    def convert(ctx: Context, x: Value, dim: int) -> Converted:
        return _along(ctx, kinds[0], x, dim), _along(ctx, kinds[1], x, dim)

    return convert


register_each(
    {
        aten.cummax.default: (ops.CumMaxOp, ops.ArgCumMaxOp),
        aten.cummin.default: (ops.CumMinOp, ops.ArgCumMinOp),
    },
    _scan_with_places,
)


def _first(ctx: Context, x: Value, dim: int, count: int, descending: bool) -> tuple[Value, Value]:
    """The first elements of the order along an axis, and where they are."""
    attrs = {"count": count, "descending": descending}
    return _along(ctx, ops.SortOp, x, dim, **attrs), _along(ctx, ops.ArgSortOp, x, dim, **attrs)


def _extent(x: Value, dim: int) -> int:
    return x.shape[axis_of(dim, len(x.shape))] if x.shape else 1


@converter(aten.sort.default)
def sort(ctx: Context, x: Value, dim: int = -1, descending: bool = False) -> Converted:
    return _first(ctx, x, dim, _extent(x, dim), descending)


@converter(aten.sort.stable)
def sort_stable(
    ctx: Context, x: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Converted:
    return sort(ctx, x, dim, descending)


@converter(aten.topk.default)
def topk(ctx: Context, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Converted:
    if not k:
        ctx.refuse("no elements are wanted")
    return _first(ctx, x, dim, k, largest)


@converter(aten.kthvalue.default)
def kthvalue(ctx: Context, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> Converted:
    shape = ctx.result_type.shape
    found = _first(ctx, x, dim, k, descending=False)
    return tuple(ctx.reshape(_at(ctx, one, dim, k - 1), shape) for one in found)


def _at(ctx: Context, x: Value, dim: int, place: int) -> Value:
    return ctx.slice(x, axis_of(dim, len(x.shape)), place, place + 1) if x.shape else x


@converter(aten.median.dim)
def median(ctx: Context, x: Value, dim: int, keepdim: bool = False) -> Converted:
    """The lower of two middle elements; the first NaN where there is one, which is the last of the order."""
    shape, middle, last = ctx.result_type.shape, (_extent(x, dim) - 1) // 2, _extent(x, dim) - 1
    if not x.type.dtype.is_floating:
        return kthvalue(ctx, x, middle + 1, dim, keepdim)
    values, places = _first(ctx, x, dim, last + 1, descending=False)
    largest = Expression(ctx, _at(ctx, values, dim, last))
    line = x if x.shape else ctx.reshape(x, (1,))
    first_nan = ctx.emit(ops.ArgMaxOp, line, attrs=ops.ArgMaxOp.attrs_type(axis_of(dim, len(x.shape)), True))
    is_nan = largest.differs(largest)
    value = is_nan.choose(largest, Expression(ctx, _at(ctx, values, dim, middle)))
    first = Expression(ctx, ctx.reshape(first_nan, is_nan.value.shape))
    place = is_nan.choose(first, Expression(ctx, _at(ctx, places, dim, middle)))
    return ctx.reshape(value.value, shape), ctx.reshape(place.value, shape)


@converter(aten.nanmedian.dim)
def nanmedian(ctx: Context, x: Value, dim: int, keepdim: bool = False) -> Converted:
    """The lower of two middle elements among those that are not NaN, which are the first of the order."""
    if not x.type.dtype.is_floating or not x.shape:
        return median(ctx, x, dim, keepdim)
    shape, axis = ctx.result_type.shape, axis_of(dim, len(x.shape))
    order = _first(ctx, x, dim, x.shape[axis], descending=False)
    number = Expression(ctx, x)
    attrs = ops.SumOp.attrs_type(axes=(axis,), keepdim=True)
    counted = ctx.emit(ops.SumOp, number.equals(number).cast(DType.I64).value, attrs=attrs)
    middle = (Expression(ctx, counted) - 1).apply(ops.MaximumOp, 0).apply(ops.QuotientOp, 2)
    return tuple(ctx.reshape(gather(ctx, one, dim, middle.value), shape) for one in order)


def _of_all(convert: Converter) -> Converter:
    def flat(ctx: Context, x: Value) -> Value:
        values = convert(ctx, ctx.reshape(x, (math.prod(x.shape),)), 0)
        assert isinstance(values, tuple) and values[0] is not None
        return values[0]

    return flat


register_each({aten.median.default: median, aten.nanmedian.default: nanmedian}, _of_all)


@converter(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(
    ctx: Context,
    rows: Value,
    numbers: Value | Number,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Value | None = None,
) -> Value:
    ordered = rows if sorter is None else gather(ctx, rows, -1, sorter)
    return _search(ctx, ordered, ctx.operand(numbers, rows.type.dtype), right or side == "right")


@converter(aten.bucketize.Tensor)
def bucketize(
    ctx: Context, numbers: Value, boundaries: Value, *, out_int32: bool = False, right: bool = False
) -> Value:
    return _search(ctx, boundaries, numbers, right)


def _search(ctx: Context, rows: Value, numbers: Value, right: bool) -> Value:
    found = ctx.emit(ops.SearchOp, rows, ctx.cast(numbers, rows.type.dtype), attrs=ops.SearchOp.attrs_type(right=right))
    return ctx.cast(found, ctx.dtype)


@converter(aten.mode.default)
def mode(ctx: Context, x: Value, dim: int = -1, keepdim: bool = False) -> Converted:
    """The smallest of the most frequent elements, and where it is last: the end of the longest run in the order.

    No two NaN are equal, and they come last; in PyTorch they end up anywhere in the order.
    """
    shape, extent = ctx.result_type.shape, _extent(x, dim)
    axis, line = axis_of(dim, len(x.shape)), x if x.shape else ctx.reshape(x, (1,))
    order = _first(ctx, line, axis, extent, descending=False)
    index = Expression(ctx, _numbered(ctx, line, axis))
    before = Expression(ctx, take(ctx, order[0], axis, [max(i - 1, 0) for i in range(extent)]))
    starts = before.differs(Expression(ctx, order[0])).choose(index, 0)
    start = Expression(ctx, _along(ctx, ops.CumMaxOp, starts.value, axis))
    last = ctx.emit(ops.ArgMaxOp, (index - start).value, attrs=ops.ArgMaxOp.attrs_type(axis, True))
    return tuple(ctx.reshape(gather(ctx, one, axis, last), shape) for one in order)


def _numbered(ctx: Context, x: Value, axis: int) -> Value:
    """Positions along an axis, in the shape of ``x``."""
    along = [extent if other == axis else 1 for other, extent in enumerate(x.shape)]
    return ctx.expand(ctx.constant(torch.arange(x.shape[axis]).reshape(along), "positions"), x.shape)
