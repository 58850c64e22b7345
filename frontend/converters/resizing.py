"""Resizing by filters that are known now: one product with a constant matrix for each axis.

The rows of a matrix are what PyTorch's own operator makes of the unit vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._ops import OpOverload

from ...ir import Value
from ...ir.ops import MatmulOp
from ..context import Context
from ..registry import Converted, Converter, converter, register_each

aten = torch.ops.aten


def _resized(operator: OpOverload) -> Converter:
    def convert(
        ctx: Context,
        x: Value,
        output_size: Sequence[int],
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Value:
        (height, width), (rows, columns) = x.shape[-2:], output_size
        down = _matrix(operator, height, rows, align_corners, scales_h)
        across = _matrix(operator, width, columns, align_corners, scales_w)
        dtype = x.type.dtype.torch
        if width != columns:
            attrs = MatmulOp.attrs_type(transpose_rhs=True)
            x = ctx.emit(MatmulOp, x, ctx.constant(across.to(dtype), "columns"), attrs=attrs)
        return ctx.emit(MatmulOp, ctx.constant(down.to(dtype), "rows"), x) if height != rows else x

    return convert


def _matrix(operator: OpOverload, extent: int, size: int, align_corners: bool, scale: float | None) -> torch.Tensor:
    """[size, extent]: resizes the rows of an image; its columns stay, as many as there are."""
    units = torch.eye(extent, dtype=torch.float64)[None, None]
    return operator(units, [size, extent], align_corners, scale, None)[0, 0]


_OPERATORS = (
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.default,
    aten.upsample_bicubic2d.default,
)
register_each({operator: operator for operator in _OPERATORS}, _resized)


@converter(aten.upsample_bicubic2d.vec)
def upsample_bicubic(
    ctx: Context,
    x: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None = None,
) -> Converted:
    resize = _resized(aten.upsample_bicubic2d.default)
    return resize(ctx, x, ctx.result_type.shape[-2:], align_corners, *(scale_factors or ()))
