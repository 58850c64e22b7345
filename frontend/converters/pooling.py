"""Poolings over windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from ...ir import Attrs, DType, Op, Value
from ...ir.ops import (
    AdaptiveAvgPool2dOp,
    AddOp,
    ArgMaxOp,
    AvgPool2dOp,
    AvgPool3dOp,
    EmbeddingOp,
    MaxOp,
    MaxPool2dOp,
    MaxPool3dOp,
    MulOp,
)
from ...ir.ops.pooling import Pool2dAttrs, Pool3dAttrs, PoolOp
from ..context import Context, pair, triple
from ..registry import Converted, Converter, converter, register_each
from .indexing import take
from .windows import Windows, lowest

aten = torch.ops.aten


def _max_pool(kind: type[PoolOp], has_indices: bool) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> Converted:
        attrs = _attrs(kind, kernel_size, stride, padding, dilation, ceil=ceil_mode)
        largest = _batched(ctx, kind, x, attrs)
        return _with_indices(ctx, x, largest, attrs) if has_indices else largest

    return convert


register_each(
    {
        aten.max_pool2d.default: (MaxPool2dOp, False),
        aten.max_pool3d.default: (MaxPool3dOp, False),
        aten.max_pool2d_with_indices.default: (MaxPool2dOp, True),
        aten.max_pool3d_with_indices.default: (MaxPool3dOp, True),
    },
    lambda entry: _max_pool(*entry),
)


def _attrs(
    kind: type[PoolOp],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    **others: bool,
) -> Any:
    """Attributes of a pooling, with one number for each dimension of its window."""
    each = triple if issubclass(kind.attrs_type, Pool3dAttrs) else pair
    window = {"kernel": kernel, "stride": stride or kernel, "padding": padding, "dilation": dilation}
    return kind.attrs_type(**{name: each(numbers) for name, numbers in window.items()}, **others)


def _with_indices(ctx: Context, x: Value, largest: Value, attrs: Pool2dAttrs | Pool3dAttrs) -> Converted:
    """``largest`` and where it lies in its plane: where the window begins, plus what its tap adds."""
    if 1 not in ctx.used_results:
        return largest, None
    plane = x.shape[-len(attrs.kernel) :]
    windows = Windows.over(plane, attrs.kernel, attrs.stride, attrs.padding, attrs.dilation, attrs.ceil)
    taps = ctx.emit(ArgMaxOp, windows.stacked(ctx, x, 0, lowest(x.type.dtype)), attrs=ArgMaxOp.attrs_type(axis=0))
    offsets = ctx.emit(EmbeddingOp, ctx.constant(windows.tap_offsets()[:, None], "offsets"), taps)
    begins = ctx.constant(windows.first_elements(), "begins")
    return largest, ctx.emit(AddOp, ctx.reshape(offsets, largest.shape), begins)


def _avg_pool(kind: type[PoolOp]) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        attrs = _attrs(kind, kernel_size, stride, padding, ceil=ceil_mode, count_include_pad=count_include_pad)
        is_deep = len(x.shape) == 5 and x.shape[1] == 1 and attrs.kernel[1:] == (1, 1)
        if is_deep and not any(attrs.padding) and not ceil_mode:
            return _mean_over_depth(ctx, x, attrs, divisor_override)
        return _divided(ctx, _batched(ctx, kind, x, attrs), x.shape[-len(attrs.kernel) :], attrs, divisor_override)

    return convert


register_each({aten.avg_pool2d.default: AvgPool2dOp, aten.avg_pool3d.default: AvgPool3dOp}, _avg_pool)


def _mean_over_depth(ctx: Context, x: Value, attrs: Pool2dAttrs | Pool3dAttrs, divisor: int | None) -> Value:
    """Neighbouring channels, as response normalisation averages them: a sum of slices, which one kernel computes."""
    windows = Windows.over(x.shape[2:], attrs.kernel, attrs.stride, attrs.padding, attrs.dilation)
    total = functools.reduce(lambda one, other: ctx.emit(AddOp, one, other), windows.parts(ctx, x))
    return ctx.emit(MulOp, total, ctx.operand(1 / (divisor or attrs.kernel[0]), x.type.dtype))


def _divided(
    ctx: Context, means: Value, plane: Sequence[int], attrs: Pool2dAttrs | Pool3dAttrs, divisor: int | None
) -> Value:
    """Means as sums over ``divisor``: times what they have been divided by, and divided by that."""
    if divisor is None:
        return means
    window = (attrs.kernel, attrs.stride, attrs.padding, attrs.ceil, attrs.count_include_pad)
    ones = torch.ones(1, 1, *plane, dtype=torch.float64)
    pool = functional.avg_pool2d if len(plane) == 2 else functional.avg_pool3d
    counts = pool(ones, *window, divisor_override=1) / pool(ones, *window)
    factors = (counts.nan_to_num(1) / divisor).to(means.type.dtype.torch)
    if bool((factors == factors.flatten()[0]).all()):
        return ctx.emit(MulOp, means, ctx.operand(factors.flatten()[0].item(), means.type.dtype))
    return ctx.emit(MulOp, means, ctx.constant(factors[0, 0], "counts"))


@converter(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Value, output_size: Sequence[int]) -> Value:
    attrs = AdaptiveAvgPool2dOp.attrs_type(size=pair(output_size))
    return _batched(ctx, AdaptiveAvgPool2dOp, x, attrs)


@converter(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool3d(ctx: Context, x: Value, output_size: Sequence[int]) -> Converted:
    """Windows of one size are an average pooling; others are averaged over height and width, then over depth."""
    size, plane = triple(output_size), x.shape[-3:]
    if not any(extent % parts for extent, parts in zip(plane, size, strict=True)):
        return _avg_pool(AvgPool3dOp)(ctx, x, [extent // parts for extent, parts in zip(plane, size, strict=True)])
    frames = ctx.reshape(x, (math.prod(x.shape[:-4]), math.prod(x.shape[-4:-2]), *plane[1:]))
    flat = adaptive_avg_pool2d(ctx, frames, size[1:])
    columns = ctx.reshape(flat, (math.prod(x.shape[:-4]), x.shape[-4], plane[0], size[1] * size[2]))
    return ctx.reshape(adaptive_avg_pool2d(ctx, columns, (size[0], size[1] * size[2])), ctx.result_type.shape)


@converter(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(ctx: Context, x: Value, output_size: Sequence[int]) -> Converted:
    return _adaptive_max(ctx, x, pair(output_size))


@converter(aten.adaptive_max_pool3d.default)
def adaptive_max_pool3d(ctx: Context, x: Value, output_size: Sequence[int]) -> Converted:
    return _adaptive_max(ctx, x, triple(output_size))


def _adaptive_max(ctx: Context, x: Value, size: Sequence[int]) -> Converted:
    """Windows of one size are a pooling; of others, the elements are looked up, the last ones again in smaller ones."""
    rank, plane = len(size), x.shape[-len(size) :]
    if not any(extent % parts for extent, parts in zip(plane, size, strict=True)):
        pool = _max_pool(MaxPool2dOp if rank == 2 else MaxPool3dOp, has_indices=True)
        return pool(ctx, x, [extent // parts for extent, parts in zip(plane, size, strict=True)])
    positions = torch.zeros((), dtype=torch.int64)
    for extent, parts in zip(plane, size, strict=True):
        windows = [range(i * extent // parts, -(-(i + 1) * extent // parts)) for i in range(parts)]
        most = max(map(len, windows))
        along = torch.tensor([[*window, *[window[-1]] * (most - len(window))] for window in windows])
        positions = positions[..., None, None] * extent + along
    order = (*range(1, 2 * rank, 2), *range(0, 2 * rank, 2))
    positions = positions.permute(order).reshape(-1, math.prod(size))  # [taps, windows]
    flat = ctx.reshape(x, (*x.shape[:-rank], math.prod(plane)))
    taken = take(ctx, flat, len(flat.shape) - 1, positions)
    axis = len(flat.shape) - 1
    shape = (*x.shape[:-rank], *size)
    largest = ctx.reshape(ctx.emit(MaxOp, taken, attrs=MaxOp.attrs_type(axes=(axis,))), shape)
    if 1 not in ctx.used_results:
        return largest, None
    taps = ctx.emit(ArgMaxOp, taken, attrs=ArgMaxOp.attrs_type(axis=axis))
    number = ctx.constant(torch.arange(math.prod(size)), "windows")
    rows = ctx.emit(AddOp, ctx.emit(MulOp, taps, ctx.operand(math.prod(size), DType.I64)), number)
    indices = ctx.emit(EmbeddingOp, ctx.constant(positions.reshape(-1, 1), "positions"), rows)
    return largest, ctx.reshape(indices, shape)


def _batched(ctx: Context, kind: type[Op], x: Value, attrs: Attrs) -> Value:
    """Pool [C,H,W], or [C,D,H,W], as a batch of one."""
    if len(x.shape) == (5 if isinstance(attrs, Pool3dAttrs) else 4):
        return ctx.emit(kind, x, attrs=attrs)
    result = ctx.emit(kind, ctx.reshape(x, (1, *x.shape)), attrs=attrs)
    return ctx.reshape(result, result.shape[1:])
