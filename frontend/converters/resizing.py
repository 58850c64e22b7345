"""Resizing by filters that are known now: one product with a constant matrix for each axis.

The columns of a matrix are what PyTorch's own operator makes of the unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch._ops import OpOverload

from ...ir import Value
from ...ir.ops import MatmulOp
from ..context import Context
from ..registry import Converted, Converter, register_each

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
        aten.upsample_bicubic2d.default: _rows(aten.upsample_bicubic2d.default),
        aten.upsample_trilinear3d.default: _linear,
    },
    _converter,
)


def _by_factors(entry: tuple[Filter, int]) -> Converter:
    """The overload that gives all factors at once, or none, for ``entry``: a filter, and how many axes it resizes."""
    filter, axes = entry

    def convert(
        ctx: Context,
        x: Value,
        output_size: Sequence[int] | None,
        align_corners: bool,
        scale_factors: Sequence[float] | None = None,
    ) -> Value:
        return _resized(ctx, x, filter, align_corners, scale_factors or (None,) * axes)

    return convert


register_each(
    {
        aten.upsample_bicubic2d.vec: (_rows(aten.upsample_bicubic2d.default), 2),
        aten.upsample_trilinear3d.vec: (_linear, 3),
    },
    _by_factors,
)
