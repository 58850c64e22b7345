"""Convolutions. One-dimensional ones run as two-dimensional ones of height 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...ir import Attrs, Op, Value
from ...ir.ops import Conv2dOp, Conv3dOp, ConvTranspose2dOp, PadOp
from ..context import Context, pair, triple
from ..registry import converter
from .windows import concat

aten = torch.ops.aten


class _Window(NamedTuple):
    """How windows move over the input, a number for each dimension."""

    stride: Sequence[int]
    padding: Sequence[int]
    output_padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


@converter(aten.conv2d.default, aten.conv2d.padding)
def conv2d(
    ctx: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    """Padding has a name where it is "valid", none, or "same"; the odd one goes to the end then, as in PyTorch."""
    dilation = pair(dilation)
    if padding == "same":
        total = [dilation[i] * (weight.shape[2 + i] - 1) for i in range(2)]
        top, left = (amount // 2 for amount in total)
        sides = (top, left, total[0] - top, total[1] - left)
    else:
        sides = pair((0, 0) if isinstance(padding, str) else padding) * 2
    attrs = Conv2dOp.attrs_type(stride=pair(stride), padding=sides, dilation=dilation, groups=groups)
    return _in_batches(ctx, Conv2dOp, x, weight, bias, attrs)


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
        return _transposed(ctx, x, weight, bias, _Window(stride, padding, output_padding, dilation, groups))
    if spatial == 2:
        return conv2d(ctx, x, weight, bias, stride, padding, dilation, groups)
    if spatial == 3:
        sides = triple(padding) * 2
        attrs = Conv3dOp.attrs_type(stride=triple(stride), padding=sides, dilation=triple(dilation), groups=groups)
        return _in_batches(ctx, Conv3dOp, x, weight, bias, attrs)
    flat_x = ctx.reshape(x, (*x.shape[:-1], 1, x.shape[-1]))
    flat_weight = ctx.reshape(weight, (*weight.shape[:-1], 1, weight.shape[-1]))
    result = conv2d(ctx, flat_x, flat_weight, bias, (1, *stride), (0, *padding), (1, *dilation), groups)
    return ctx.reshape(result, ctx.result_type.shape)


def _in_batches(ctx: Context, kind: type[Op], x: Value, weight: Value, bias: Value | None, attrs: Attrs) -> Value:
    """An input without the dimension of the batch is a batch of one."""
    if len(x.shape) == len(weight.shape):
        return ctx.emit(kind, x, weight, bias, attrs=attrs)
    result = ctx.emit(kind, ctx.reshape(x, (1, *x.shape)), weight, bias, attrs=attrs)
    return ctx.reshape(result, result.shape[1:])


def _transposed(ctx: Context, x: Value, weight: Value, bias: Value | None, given: _Window) -> Value:
    """A sequence is an image of height 1."""
    spatial = len(weight.shape) - 2
    if spatial > 2:
        return _transposed_volume(ctx, x, weight, bias, given)
    stride, padding, output_padding, dilation, groups = given
    front = (1,) * (2 - spatial)
    none = (0,) * len(front)
    window = ((*front, *stride), (*none, *padding), (*none, *output_padding), (*front, *dilation))
    attrs = ConvTranspose2dOp.attrs_type(*map(pair, window), groups)
    batch = x.shape[: len(x.shape) - spatial - 1] or (1,)
    image = ctx.reshape(x, (*batch, x.shape[-spatial - 1], *front, *x.shape[-spatial:]))
    inputs, outputs, *extents = weight.shape
    parts = ctx.reshape(weight, (groups, inputs // groups, outputs, *front, *extents))
    filters = ctx.reshape(ctx.permute(parts, (0, 2, 1, 3, 4)), (groups * outputs, inputs // groups, *front, *extents))
    return ctx.reshape(ctx.emit(ConvTranspose2dOp, image, filters, bias, attrs=attrs), ctx.result_type.shape)


def _transposed_volume(ctx: Context, x: Value, weight: Value, bias: Value | None, window: _Window) -> Value:
    """Frames of the result with one remainder by the stride in depth are one transposed convolution of images.

    Their channels are those of all frames that a kernel reaches.
    """
    groups = window.groups
    stride, padding, output_padding, dilation = map(triple, window[:4])
    *_, inputs, frames, height, width = x.shape
    *_, results, rows, columns = ctx.result_type.shape
    batch, outputs, steps = math.prod(x.shape[:-4]), groups * weight.shape[1], stride[0]
    volume = ctx.reshape(x, (batch, groups, inputs // groups, frames, height, width))
    parts = ctx.reshape(weight, (groups, inputs // groups, *weight.shape[1:]))
    attrs = ConvTranspose2dOp.attrs_type(stride[1:], padding[1:], output_padding[1:], dilation[1:], groups)
    count = -(-results // steps)
    phases = []
    for phase in range(steps):
        # Result q * steps + phase reads frame q + shift with a tap.
        reached = [(tap, phase + padding[0] - tap * dilation[0]) for tap in range(weight.shape[2])]
        used = [(tap, distance // steps) for tap, distance in reached if distance % steps == 0]
        if not used:
            type = x.type.with_shape((batch, outputs, count, rows, columns))
            phases.append(ctx.full(0, type) if bias is None else _per_channel(ctx, bias, type.shape))
            continue
        moved = concat(ctx, [_moved(ctx, volume, shift, count) for _, shift in used], 2)
        images = ctx.reshape(ctx.permute(moved, (0, 3, 1, 2, 4, 5)), (batch * count, len(used) * inputs, height, width))
        taps = concat(ctx, [ctx.slice(parts, 3, tap, tap + 1) for tap, _ in used], 3)
        filters = ctx.reshape(
            ctx.permute(taps, (0, 2, 3, 1, 4, 5)), (outputs, len(used) * inputs // groups, *weight.shape[3:])
        )
        made = ctx.emit(ConvTranspose2dOp, images, filters, bias, attrs=attrs)
        phases.append(ctx.permute(ctx.reshape(made, (batch, count, outputs, rows, columns)), (0, 2, 1, 3, 4)))
    apart = [ctx.reshape(one, (batch, outputs, count, 1, rows, columns)) for one in phases]
    whole = ctx.reshape(concat(ctx, apart, 3), (batch, outputs, count * steps, rows, columns))
    return ctx.reshape(ctx.slice(whole, 2, 0, results), ctx.result_type.shape)


def _moved(ctx: Context, volume: Value, shift: int, count: int) -> Value:
    """``count`` frames, of which number 0 is frame ``shift``; zeros before the first and after the last one."""
    frames = volume.shape[3]
    first, last = min(max(shift, 0), frames), max(min(shift + count, frames), 0)
    before = min(max(-shift, 0), count)
    if first >= last:
        return ctx.full(0, volume.type.with_shape((*volume.shape[:3], count, *volume.shape[4:])))
    taken = ctx.slice(volume, 3, first, last)
    after = count - before - (last - first)
    if not before and not after:
        return taken
    sides = [(0, 0, 0, amount, 0, 0) for amount in (before, after)]
    return ctx.emit(PadOp, taken, attrs=PadOp.attrs_type(*sides))


def _per_channel(ctx: Context, numbers: Value, shape: Sequence[int]) -> Value:
    return ctx.expand(ctx.reshape(numbers, (*numbers.shape, 1, 1, 1)), shape)
