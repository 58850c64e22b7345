"""Interpolation of images."""

from __future__ import annotations

import math

import torch

from ....ir import ops
from ..writer import Writer, writes
from .reduction import numbers_of

_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@writes(ops.ResizeOp)
def resize(writer: Writer, op: ops.ResizeOp) -> str:
    """By factors where the op has some that lead to its size, else by the size."""
    attrs, extents = op.attrs, op.x.shape[2:]
    factors = [scale or size / extent for scale, size, extent in zip(attrs.scales, attrs.size, extents, strict=True)]
    by_factors = any(attrs.scales) and not attrs.align_corners
    if by_factors and all(math.floor(f * e) == s for f, e, s in zip(factors, extents, attrs.size, strict=True)):
        how = [writer.tensor(torch.tensor([1.0, 1.0, *factors]), "scales")]
    else:
        how = ["", writer.numbers([*op.x.shape[:2], *attrs.size])]
    return writer.node(
        "Resize",
        numbers_of(writer, op.x),
        "",
        *how,
        mode=_MODES[attrs.mode],
        coordinate_transformation_mode="align_corners" if attrs.align_corners else "half_pixel",
        cubic_coeff_a=-0.75,
    )
