"""Operators that move elements: shapes, permutations, slices, joins, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..known import number, numbers, refuse
from ..registry import operator
from .windows import padded

Tensor = torch.Tensor
Known = Tensor | Sequence[int] | None


@operator("Reshape")
def reshape(x: Tensor, shape: Known = None, *, allowzero: int = 0) -> Tensor:
    extents = numbers(shape)
    if not allowzero:
        extents = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(extents)]
    return x.reshape(extents)


@operator("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    front = x.shape[: axis % x.ndim if axis < 0 else axis]
    return x.reshape(math.prod(front), math.prod(x.shape[len(front) :]))


@operator("Squeeze")
def squeeze(x: Tensor, axes: Known = None) -> Tensor:
    chosen = {axis % x.ndim for axis in numbers(axes)} or {axis for axis, extent in enumerate(x.shape) if extent == 1}
    if any(x.shape[axis] != 1 for axis in chosen):
        refuse("an axis to leave out has several elements")
    return x.reshape([extent for axis, extent in enumerate(x.shape) if axis not in chosen])


@operator("Unsqueeze")
def unsqueeze(x: Tensor, axes: Known = None) -> Tensor:
    rank = x.ndim + len(numbers(axes))
    chosen = {axis % rank for axis in numbers(axes)}
    own = iter(x.shape)
    return x.reshape([1 if axis in chosen else next(own) for axis in range(rank)])


@operator("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(range(x.ndim))[::-1] if perm is None else tuple(perm))


@operator("Expand")
def expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(numbers(shape))))


@operator("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(numbers(repeats))


@operator("Concat")
def concat(*parts: Tensor, axis: int = 0) -> Tensor:
    return torch.cat(parts, axis)


@operator("Split")
def split(
    x: Tensor, split: Known = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Tensor, ...]:
    """Equal parts unless sizes are given; the last may be smaller."""
    part = -(-x.shape[axis] // (num_outputs or outputs))
    sizes = numbers(split) or [min(part, x.shape[axis] - start) for start in range(0, x.shape[axis], part)]
    return tuple(torch.split(x, sizes, axis))


@operator("Slice")
def slice_(x: Tensor, starts: Known = None, ends: Known = None, axes: Known = None, steps: Known = None) -> Tensor:
    firsts, lasts = numbers(starts), numbers(ends)
    chosen, strides = numbers(axes) or range(len(firsts)), numbers(steps) or [1] * len(firsts)
    for first, last, axis, step in zip(firsts, lasts, chosen, strides, strict=True):
        start, stop, _ = slice(first, last, step).indices(x.shape[axis])
        if step > 0:
            x = torch.ops.aten.slice.Tensor(x, axis, start, max(start, stop), step)
        else:
            x = x.index_select(axis, torch.arange(start, stop, step) if start > stop else torch.arange(0))
    return x


@operator("Pad")
def pad(
    x: Tensor,
    pads: Known = None,
    value: Tensor | float | None = None,
    axes: Known = None,
    *,
    mode: str = "constant",
) -> Tensor:
    chosen = [axis % x.ndim for axis in numbers(axes)] or list(range(x.ndim))
    amounts = [(0, 0)] * x.ndim
    both = numbers(pads)
    for axis, begin, end in zip(chosen, both[: len(chosen)], both[len(chosen) :], strict=True):
        amounts[axis] = begin, end
    if mode == "constant":
        return padded(x, amounts, number(value) or 0)
    for axis, (begin, end) in enumerate(amounts):
        if begin or end:
            positions = torch.arange(-begin, x.shape[axis] + end)
            x = x.index_select(axis, _source(positions, x.shape[axis], mode))
    return x


def _source(positions: Tensor, extent: int, mode: str) -> Tensor:
    """Which element a padded position shows."""
    if mode == "wrap":
        return positions % extent
    if mode == "edge":
        return positions.clamp(0, extent - 1)
    if mode != "reflect":
        refuse(f"padding mode {mode!r}")
    period = max(2 * extent - 2, 1)
    return extent - 1 - (extent - 1 - positions % period).abs()


@operator("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int = 1, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return torch.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    split = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int = 1) -> Tensor:
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)
