"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...ir import DType, Op, Value
from ...ir.ops import ArgMaxOp, ArgMinOp, DivOp, MaxOp, MeanOp, MinOp, MulOp, NeOp, ProdOp, SubOp, SumOp
from ..context import Context, Number, axis_of
from ..registry import Converted, Converter, converter, register_each

aten = torch.ops.aten
Dims = int | Sequence[int] | None


def reduce_axes(ctx: Context, kind: type[Op], x: Value, dims: Dims, keepdim: bool) -> Value:
    """A reduction over some axes, or over all."""
    rank = len(x.shape)
    if not rank:
        return x
    chosen = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    axes = tuple(sorted({axis_of(dim, rank) for dim in chosen}))
    if not x.type.size:
        shape = [1 if axis in axes else extent for axis, extent in enumerate(x.shape) if keepdim or axis not in axes]
        if math.prod(shape):
            return ctx.full(_OF_NOTHING[kind], x.type.with_shape(tuple(shape)))
    return ctx.emit(kind, x, attrs=kind.attrs_type(axes=axes, keepdim=keepdim))


# Extrema of nothing are those of booleans, which are disjunctions and conjunctions; PyTorch refuses others.
_OF_NOTHING: dict[type[Op], Number] = {SumOp: 0, ProdOp: 1, MeanOp: math.nan, MaxOp: False, MinOp: True}


def _sum_or_mean(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: Dims = None, keepdim: bool = False, **options: object) -> Value:
        return reduce_axes(ctx, kind, ctx.cast(x, ctx.dtype), dim, keepdim)

    return convert


register_each(
    {aten.mean.dim: MeanOp, aten.mean.default: MeanOp, aten.sum.dim_IntList: SumOp, aten.sum.default: SumOp},
    _sum_or_mean,
)


def _extremum(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
        return reduce_axes(ctx, kind, x, dim, keepdim)

    return convert


register_each(
    {aten.amax.default: MaxOp, aten.amin.default: MinOp, aten.max.default: MaxOp, aten.min.default: MinOp}, _extremum
)


def _place(ctx: Context, kind: type[Op], x: Value, dim: int | None, keepdim: bool) -> Value:
    flat = x if dim is not None and x.shape else ctx.reshape(x, (math.prod(x.shape),))
    axis = 0 if dim is None or not x.shape else axis_of(dim, len(x.shape))
    return ctx.reshape(ctx.emit(kind, flat, attrs=kind.attrs_type(axis, keepdim)), ctx.result_type.shape)


def _extremum_with_index(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: int, keepdim: bool = False) -> Converted:
        places = _place(ctx, ArgMaxOp if kind is MaxOp else ArgMinOp, x, dim, keepdim)
        return reduce_axes(ctx, kind, x, dim, keepdim), places

    return convert


register_each({aten.max.dim: MaxOp, aten.min.dim: MinOp}, _extremum_with_index)


def _truth(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: Dims = None, keepdim: bool = False) -> Value:
        if x.type.dtype is not DType.BOOL:
            x = ctx.emit(NeOp, x, ctx.operand(0, x.type.dtype))
        return reduce_axes(ctx, kind, x, dim, keepdim)

    return convert


register_each(
    {
        aten.any.default: MaxOp,
        aten.any.dim: MaxOp,
        aten.any.dims: MaxOp,
        aten.all.default: MinOp,
        aten.all.dim: MinOp,
        aten.all.dims: MinOp,
    },
    _truth,
)


@converter(aten.prod.default, aten.prod.dim_int)
def prod(ctx: Context, x: Value, dim: int | None = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    return reduce_axes(ctx, ProdOp, ctx.cast(x, ctx.dtype), dim, keepdim)


def _argument(kind: type[Op]) -> Converter:
    def convert(ctx: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        return _place(ctx, kind, x, dim, keepdim)

    return convert


register_each({aten.argmax.default: ArgMaxOp, aten.argmin.default: ArgMinOp}, _argument)


@converter(aten.var.correction)
def var(ctx: Context, x: Value, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False) -> Value:
    return variance(ctx, x, dim, correction, keepdim)


@converter(aten.var_mean.correction)
def var_mean(
    ctx: Context, x: Value, dim: Dims = None, *, correction: Number | None = None, keepdim: bool = False
) -> Converted:
    return variance(ctx, x, dim, correction, keepdim), reduce_axes(ctx, MeanOp, x, dim, keepdim)


def variance(ctx: Context, x: Value, dim: Dims, correction: Number | None, keepdim: bool) -> Value:
    """Mean of the squared distance from the mean, times n / (n - correction)."""
    correction = 1 if correction is None else correction
    mean = reduce_axes(ctx, MeanOp, x, dim, keepdim=True)
    distance = ctx.emit(SubOp, x, mean)
    squares = ctx.emit(MulOp, distance, distance)
    count = x.type.size // mean.type.size if mean.type.size else 0
    if count <= correction:  # nothing is left to divide by: infinity, or NaN where all are equal
        total = reduce_axes(ctx, SumOp, squares, dim, keepdim)
        return ctx.emit(DivOp, total, ctx.operand(0, x.type.dtype))
    mean_square = reduce_axes(ctx, MeanOp, squares, dim, keepdim)
    if not correction:
        return mean_square
    return ctx.emit(MulOp, mean_square, ctx.operand(count / (count - correction), x.type.dtype))
