"""Poolings over windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...ir import Value
from ...ir.ops import AdaptiveAvgPool2dOp, AvgPool2dOp, MaxPool2dOp
from ..context import Context, pair
from ..registry import converter

aten = torch.ops.aten


@converter(aten.max_pool2d.default)
def max_pool2d(
    ctx: Context,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Value:
    attrs = MaxPool2dOp.attrs_type(
        kernel=pair(kernel_size),
        stride=pair(stride or kernel_size),
        padding=pair(padding),
        dilation=pair(dilation),
        ceil=ceil_mode,
    )
    return _batched(ctx, x, lambda batch: ctx.emit(MaxPool2dOp, batch, attrs=attrs))


@converter(aten.max_pool2d_with_indices.default)
def max_pool2d_with_indices(
    ctx: Context,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Value | None, ...]:
    return max_pool2d(ctx, x, kernel_size, stride, padding, dilation, ceil_mode), None


@converter(aten.avg_pool2d.default)
def avg_pool2d(
    ctx: Context,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        ctx.refuse("a divisor other than the size of the window")
    attrs = AvgPool2dOp.attrs_type(
        kernel=pair(kernel_size),
        stride=pair(stride or kernel_size),
        padding=pair(padding),
        ceil=ceil_mode,
        count_include_pad=count_include_pad,
    )
    return _batched(ctx, x, lambda batch: ctx.emit(AvgPool2dOp, batch, attrs=attrs))


@converter(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(ctx: Context, x: Value, output_size: Sequence[int]) -> Value:
    attrs = AdaptiveAvgPool2dOp.attrs_type(size=pair(output_size))
    return _batched(ctx, x, lambda batch: ctx.emit(AdaptiveAvgPool2dOp, batch, attrs=attrs))


@converter(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(ctx: Context, x: Value, output_size: Sequence[int]) -> tuple[Value | None, ...]:
    size, extents = pair(output_size), x.shape[-2:]
    if any(extent % part for extent, part in zip(extents, size, strict=True)):
        ctx.refuse(f"windows of unequal size: {list(extents)} does not divide into {list(size)}")
    return max_pool2d(ctx, x, [extent // part for extent, part in zip(extents, size, strict=True)]), None


def _batched(ctx: Context, x: Value, pool: Callable[[Value], Value]) -> Value:
    """Pool [C,H,W] as a batch of one."""
    if len(x.shape) == 4:
        return pool(x)
    result = pool(ctx.reshape(x, (1, *x.shape)))
    return ctx.reshape(result, result.shape[1:])
