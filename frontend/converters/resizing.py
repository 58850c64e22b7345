"""Resizing: interpolation of images is an op; other filters are one product with a constant matrix for each axis.

The columns of a matrix are what PyTorch's own operator makes of the unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch._ops import OpOverload

from ...ir import DType, Value
from ...ir.ops import AddOp, ClampOp, FloorOp, MatmulOp, ResizeOp
from ...ir.ops.resizing import ResizeAttrs
from ..context import Context
from ..registry import Converted, Converter, converter, register_each

aten = torch.ops.aten
Filter = Callable[[int, int, bool, float | None], torch.Tensor]  # [size, extent] of extent, size, corners and scale


def _resized(ctx: Context, x: Value, filter: Filter, align_corners: bool, scales: Sequence[float | None]) -> Value:
    """``x`` with its last axes, as many as there are scales, of the result's extents."""
    first = len(x.shape) - len(scales)
    for axis in range(len(x.shape) - 1, first - 1, -1):
        extent, size = x.shape[axis], ctx.result_type.shape[axis]
        if extent != size:
            matrix = filter(extent, size, align_corners, scales[axis - first]).to(x.type.dtype.torch)
            x = _along(ctx, x, axis, ctx.constant(matrix, f"filter{axis}"))
    return x


def _along(ctx: Context, x: Value, axis: int, matrix: Value) -> Value:
    if axis == len(x.shape) - 1:
        return ctx.emit(MatmulOp, x, matrix, attrs=MatmulOp.attrs_type(transpose_rhs=True))
    lead, extent, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    product = ctx.emit(MatmulOp, matrix, ctx.reshape(x, (*lead, extent, math.prod(rest))))
    return ctx.reshape(product, (*lead, matrix.shape[0], *rest))


def _rows(operator: OpOverload) -> Filter:
    """The filter of an operator on images, which keeps columns of which there are as many as before."""

    def filter(extent: int, size: int, align_corners: bool, scale: float | None) -> torch.Tensor:
        units = torch.eye(extent, dtype=torch.float64)[None, None]
        return operator(units, [size, extent], align_corners, scale, None)[0, 0]

    return filter


def _linear(extent: int, size: int, align_corners: bool, scale: float | None) -> torch.Tensor:
    units = torch.eye(extent, dtype=torch.float64)[None]
    return aten.upsample_linear1d.default(units, [size], align_corners, scale)[0].t()


def _converter(filter: Filter) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        output_size: Sequence[int],
        align_corners: bool,
        *scales: float | None,
        **named: float | None,
    ) -> Converted:
        axes = len(output_size)
        return _resized(ctx, x, filter, align_corners, (*scales, *named.values(), *[None] * axes)[:axes])

    return convert


register_each(
    {
        aten._upsample_bilinear2d_aa.default: _rows(aten._upsample_bilinear2d_aa.default),
        aten._upsample_bicubic2d_aa.default: _rows(aten._upsample_bicubic2d_aa.default),
        aten.upsample_trilinear3d.default: _linear,
    },
    _converter,
)


@converter(aten.upsample_trilinear3d.vec)
def resize_volume(
    ctx: Context,
    x: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None = None,
) -> Value:
    return _resized(ctx, x, _linear, align_corners, scale_factors or (None,) * 3)


def _interpolated(
    ctx: Context, x: Value, mode: str, align_corners: bool, scales: Sequence[float | None] | None
) -> Value:
    height, width = ctx.result_type.shape[-2:]
    tall, wide = (float(scale or 0) for scale in scales or (None, None))
    if x.type.dtype.is_floating:
        return ctx.emit(ResizeOp, x, attrs=ResizeAttrs((height, width), mode, align_corners, (tall, wide)))
    between = ResizeAttrs((x.shape[-2], width), mode, align_corners, (0.0, wide))
    columns = _rounded(ctx, ctx.emit(ResizeOp, ctx.cast(x, DType.F32), attrs=between))
    rows = ResizeAttrs((height, width), mode, align_corners, (tall, 0.0))
    return ctx.cast(_rounded(ctx, ctx.emit(ResizeOp, columns, attrs=rows)), x.type.dtype)


def _rounded(ctx: Context, x: Value) -> Value:
    """The nearest byte, as PyTorch rounds those of an image after each axis."""
    nearest = ctx.emit(FloorOp, ctx.emit(AddOp, x, ctx.operand(0.5, DType.F32)))
    return ctx.emit(ClampOp, nearest, attrs=ClampOp.attrs_type(min=0.0, max=255.0))


def _by_axis(mode: str) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        output_size: Sequence[int],
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Value:
        return _interpolated(ctx, x, mode, align_corners, (scales_h, scales_w))

    return convert


def _by_factors(mode: str) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        output_size: Sequence[int] | None,
        align_corners: bool,
        scale_factors: Sequence[float] | None = None,
    ) -> Value:
        return _interpolated(ctx, x, mode, align_corners, scale_factors)

    return convert


register_each({aten.upsample_bilinear2d.default: "bilinear", aten.upsample_bicubic2d.default: "bicubic"}, _by_axis)
register_each({aten.upsample_bilinear2d.vec: "bilinear", aten.upsample_bicubic2d.vec: "bicubic"}, _by_factors)
