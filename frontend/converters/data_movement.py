"""Operators that move elements: reshapes, permutations, slices, joins, padding, writes into slices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...ir import Value
from ...ir.ops import PadOp
from ..context import Context, Number, axis_of
from ..registry import Converted, converter
from .indexing import take
from .scattering import put_slice
from .windows import Windows, concat

aten = torch.ops.aten


@converter(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.view_as.default,
)
def reshape(ctx: Context, x: Value, *args: object) -> Value:
    return ctx.reshape(x, ctx.result_type.shape)  # PyTorch has worked the shape out


@converter(aten.permute.default)
def permute(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    return ctx.permute(x, [axis_of(dim, len(x.shape)) for dim in dims])


@converter(aten.transpose.int)
def transpose(ctx: Context, x: Value, dim0: int, dim1: int) -> Value:
    dims = list(range(len(x.shape)))
    if dims:
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return ctx.permute(x, dims)


@converter(aten.t.default)
def transpose_matrix(ctx: Context, x: Value) -> Value:
    return ctx.permute(x, range(len(x.shape))[::-1])


@converter(aten.expand.default, aten.expand_as.default)
def expand(ctx: Context, x: Value, *args: object, **options: object) -> Value:
    return ctx.expand(x, ctx.result_type.shape)


@converter(aten.repeat.default)
def repeat(ctx: Context, x: Value, repeats: Sequence[int]) -> Value:
    """Put an axis of extent 1 before each repeated one, broadcast it, and merge the two."""
    extents = (1,) * (len(repeats) - len(x.shape)) + x.shape
    split = [extent for number, own in zip(repeats, extents, strict=True) for extent in (1, own)]
    spread = [extent for number, own in zip(repeats, extents, strict=True) for extent in (number, own)]
    return ctx.reshape(ctx.expand(ctx.reshape(x, split), spread), ctx.result_type.shape)


# Slices ---------------------------------------------------------------------------------------------------------


def _bounds(extent: int, start: int | None, stop: int | None, step: int) -> tuple[int, int]:
    first = _position(0 if start is None else start, extent)
    return first, max(first, _position(extent if stop is None else stop, extent))


def _position(index: int, extent: int) -> int:
    """Where a slice with a positive step begins or ends, counted from the front."""
    return max(index + extent, 0) if index < 0 else min(index, extent)


@converter(aten.slice.Tensor)
def slice_(
    ctx: Context, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    axis = axis_of(dim, len(x.shape))
    return ctx.slice(x, axis, *_bounds(x.shape[axis], start, end, step), step)


@converter(aten.select.int)
def select(ctx: Context, x: Value, dim: int, index: int) -> Value:
    axis = axis_of(dim, len(x.shape))
    position = axis_of(index, x.shape[axis])
    return ctx.reshape(ctx.slice(x, axis, position, position + 1), ctx.result_type.shape)


def _split(ctx: Context, x: Value, axis: int, sizes: Sequence[int]) -> tuple[Value, ...]:
    parts, start = [], 0
    for size in sizes:
        parts.append(ctx.slice(x, axis, start, start + size))
        start += size
    return tuple(parts)


@converter(
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
)
def split(ctx: Context, x: Value, sizes: object, dim: int = 0) -> Converted:
    axis = axis_of(dim, len(x.shape))
    return _split(ctx, x, axis, [type.shape[axis] for type in ctx.types if type is not None])


@converter(aten.unbind.int)
def unbind(ctx: Context, x: Value, dim: int = 0) -> Converted:
    axis = axis_of(dim, len(x.shape))
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    return tuple(ctx.reshape(part, rest) for part in _split(ctx, x, axis, [1] * x.shape[axis]))


@converter(aten.slice_scatter.default)
def slice_scatter(
    ctx: Context, x: Value, src: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """``x`` with a slice replaced: what writing into a slice in place becomes."""
    axis = axis_of(dim, len(x.shape))
    first, last = _bounds(x.shape[axis], start, end, step)
    new = ctx.cast(src, ctx.dtype)
    if step != 1 and first < last:
        return put_slice(ctx, x, axis, range(first, last, step), new)
    return _replace(ctx, x, new, axis, first, last)


@converter(aten.select_scatter.default)
def select_scatter(ctx: Context, x: Value, src: Value, dim: int, index: int) -> Value:
    axis = axis_of(dim, len(x.shape))
    position = axis_of(index, x.shape[axis])
    row = ctx.reshape(ctx.cast(src, ctx.dtype), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return _replace(ctx, x, row, axis, position, position + 1)


def _replace(ctx: Context, x: Value, new: Value, axis: int, first: int, last: int) -> Value:
    head = [ctx.slice(x, axis, 0, first)] if first else []
    tail = [ctx.slice(x, axis, last, x.shape[axis])] if last < x.shape[axis] else []
    parts = [*head, *([new] if first < last else []), *tail]
    return concat(ctx, parts, axis)


@converter(aten.resize.default)
def resize(ctx: Context, x: Value, size: Sequence[int], **options: object) -> Value:
    if math.prod(size) != x.type.size or not ctx.row_major:
        ctx.refuse("another size, or memory that is not contiguous; use reshape")
    return ctx.reshape(x, size)


@converter(aten.copy.default)
def copy(ctx: Context, x: Value, src: Value, non_blocking: bool = False) -> Value:
    """The contents of ``src`` in the shape and element type of ``x``: what ``x.copy_(src)`` becomes."""
    return ctx.expand(ctx.cast(src, ctx.dtype), x.shape)


# Joins and padding ----------------------------------------------------------------------------------------------


@converter(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    # PyTorch skips empty tensors of rank 1 whatever the rank of the others.
    parts = [ctx.cast(part, ctx.dtype) for part in tensors if part.shape != (0,) or ctx.result_type.rank == 1]
    return concat(ctx, parts, axis_of(dim, ctx.result_type.rank))


@converter(aten.stack.default)
def stack(ctx: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = axis_of(dim, ctx.result_type.rank)
    rows = [ctx.cast(part, ctx.dtype) for part in tensors]
    return concat(ctx, [ctx.reshape(row, (*row.shape[:axis], 1, *row.shape[axis:])) for row in rows], axis)


@converter(aten.pad.default)
def pad(ctx: Context, x: Value, pad: Sequence[int], mode: str = "constant", value: Number | None = None) -> Value:
    if mode == "constant":
        return constant_pad(ctx, x, pad, value or 0)
    for axis, (before, after) in _pad_amounts(x, pad).items():
        x = take(ctx, x, axis, [_source(i, x.shape[axis], mode) for i in range(-before, x.shape[axis] + after)])
    return x


def _pad_amounts(x: Value, pad: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Elements added before and after, by axis; PyTorch lists pairs from the last axis on."""
    pairs = zip(pad[::2], pad[1::2], strict=True)
    return {len(x.shape) - 1 - i: (before, after) for i, (before, after) in enumerate(pairs) if before or after}


def _source(position: int, extent: int, mode: str) -> int:
    """Which element a padded position shows."""
    if mode == "circular":
        return position % extent
    if mode == "replicate":
        return min(max(position, 0), extent - 1)
    return extent - 1 - abs(extent - 1 - abs(position))  # reflect: the border element is not repeated


@converter(aten.constant_pad_nd.default)
def constant_pad(ctx: Context, x: Value, pad: Sequence[int], value: Number = 0) -> Value:
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for axis, (head, tail) in _pad_amounts(x, pad).items():
        x = ctx.slice(x, axis, max(0, -head), x.shape[axis] - max(0, -tail))  # negative padding crops
        before[axis], after[axis] = max(0, head), max(0, tail)
    if not any(before) and not any(after):
        return x
    attrs = PadOp.attrs_type(before=tuple(before), after=tuple(after), value=float(value))
    return ctx.emit(PadOp, x, attrs=attrs)


@converter(aten.pixel_shuffle.default)
def pixel_shuffle(ctx: Context, x: Value, upscale_factor: int) -> Value:
    """[..., C r^2, H, W] -> [..., C, H r, W r] (Shi et al. 2016)."""
    *batch, channels, height, width = x.shape
    r, rank = upscale_factor, len(batch)
    split = ctx.reshape(x, (*batch, channels // (r * r), r, r, height, width))
    order = (*range(rank), *(rank + i for i in (0, 3, 1, 4, 2)))
    return ctx.reshape(ctx.permute(split, order), (*batch, channels // (r * r), height * r, width * r))


@converter(aten.flip.default)
def flip(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    for axis in {axis_of(dim, len(x.shape)) for dim in dims if x.shape}:
        x = take(ctx, x, axis, range(x.shape[axis])[::-1])
    return x


@converter(aten.roll.default)
def roll(ctx: Context, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        flat = ctx.reshape(x, (math.prod(x.shape),))
        return ctx.reshape(roll(ctx, flat, shifts, (0,)), x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(dim, len(x.shape))
        extent = x.shape[axis]
        cut = -shift % extent if extent else 0
        if cut:
            x = concat(ctx, [ctx.slice(x, axis, cut, extent), ctx.slice(x, axis, 0, cut)], axis)
    return x


@converter(aten.im2col.default)
def unfold(
    ctx: Context,
    x: Value,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Value:
    """Windows as columns: [N,C,H,W] -> [N, C * taps, windows]."""
    windows = Windows.over(x.shape[-2:], kernel_size, stride, padding, dilation)
    return ctx.reshape(windows.stacked(ctx, x, len(x.shape) - 2), ctx.result_type.shape)
