"""Convolutions. One-dimensional ones run as two-dimensional ones of height 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import Value
from ...ir.ops import Conv2dOp, Conv3dOp, ConvTranspose2dOp
from ..context import Context, pair, triple
from ..registry import converter

aten = torch.ops.aten
Sides = tuple[int, int, int, int]  # top, left, bottom, right


@converter(aten.conv2d.default)
def conv2d(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    return _conv2d(ctx, x, weight, bias, pair(stride), pair(padding) * 2, pair(dilation), groups)


@converter(aten.conv2d.padding)
def conv2d_named_padding(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    dilation = pair(dilation)
    sides = (0, 0, 0, 0)
    if padding == "same":
        total = [dilation[i] * (weight.shape[2 + i] - 1) for i in range(2)]
        top, left = (amount // 2 for amount in total)  # the odd one goes to the end, as in PyTorch
        sides = (top, left, total[0] - top, total[1] - left)
    return _conv2d(ctx, x, weight, bias, pair(stride), sides, dilation, groups)


@converter(aten.convolution.default)
def convolution(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    spatial = len(weight.shape) - 2
    if transposed:
        return _transposed(ctx, x, weight, bias, stride, padding, output_padding, dilation, groups)
    if spatial == 2:
        return conv2d(ctx, x, weight, bias, stride, padding, dilation, groups)
    if spatial == 3:
        front, top, left = padding
        attrs = Conv3dOp.attrs_type(
            stride=triple(stride), padding=(front, top, left) * 2, dilation=triple(dilation), groups=groups
        )
        batch = x.shape[:-4] or (1,)
        result = ctx.emit(Conv3dOp, ctx.reshape(x, (*batch, *x.shape[-4:])), weight, bias, attrs=attrs)
        return ctx.reshape(result, ctx.result_type.shape)
    flat_x = ctx.reshape(x, (*x.shape[:-1], 1, x.shape[-1]))
    flat_weight = ctx.reshape(weight, (*weight.shape[:-1], 1, weight.shape[-1]))
    sides = (0, padding[0], 0, padding[0])
    result = _conv2d(ctx, flat_x, flat_weight, bias, (1, stride[0]), sides, (1, dilation[0]), groups)
    return ctx.reshape(result, ctx.result_type.shape)


def _conv2d(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: tuple[int, int],
    padding: Sides,
    dilation: tuple[int, int],
    groups: int,
) -> Value:
    attrs = Conv2dOp.attrs_type(stride=stride, padding=padding, dilation=dilation, groups=groups)
    batched = ctx.reshape(x, (1, *x.shape)) if len(x.shape) == 3 else x
    result = ctx.emit(Conv2dOp, batched, weight, bias, attrs=attrs)
    return ctx.reshape(result, result.shape[1:]) if len(x.shape) == 3 else result


def _transposed(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Value:
    """A sequence is an image of height 1."""
    spatial = len(weight.shape) - 2
    if spatial > 2:
        ctx.refuse(f"{spatial}-dimensional transposed convolution")
    front = (1,) * (2 - spatial)
    attrs = ConvTranspose2dOp.attrs_type(
        stride=pair((*front, *stride)),
        padding=pair((*(0 for _ in front), *padding)),
        output_padding=pair((*(0 for _ in front), *output_padding)),
        dilation=pair((*front, *dilation)),
        groups=groups,
    )
    batch = x.shape[: len(x.shape) - spatial - 1] or (1,)
    image = ctx.reshape(x, (*batch, x.shape[-spatial - 1], *front, *x.shape[-spatial:]))
    inputs, outputs, *window = weight.shape
    parts = ctx.reshape(weight, (groups, inputs // groups, outputs, *front, *window))
    filters = ctx.reshape(ctx.permute(parts, (0, 2, 1, 3, 4)), (groups * outputs, inputs // groups, *front, *window))
    return ctx.reshape(ctx.emit(ConvTranspose2dOp, image, filters, bias, attrs=attrs), ctx.result_type.shape)
