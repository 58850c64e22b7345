"""Where the elements of a tensor lie, and how an epilogue reads the ones that belong to a vector of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...ir import TensorType
from ..templates.base import Buffer, Expr, VectorAt, row_major_strides
from ..templates.vector.builder import broadcast, load, split_index
from ..templates.vector.vectors import dtype_of, lanes_of, load_strided
from .views import View


def dot(coords: Sequence[Expr], strides: Sequence[int]) -> Expr:
    """Element offset of ``coords``."""
    offset: Expr = 0
    for coordinate, stride in zip(coords, strides, strict=True):
        offset = offset + coordinate * stride
    return offset


def reshape_at(at: VectorAt, kernel_shape: Sequence[int], shape: Sequence[int]) -> VectorAt:
    """The same vector with coordinates of ``shape`` instead of the kernel's own view of its result.

    Both shapes are plain and have the same elements in the same order. Where the last extents differ, a vector may run
    over the end of a row, so each coordinate becomes a vector of its own.
    """
    if tuple(kernel_shape) == tuple(shape):
        return at
    if shape and kernel_shape[-1] == shape[-1]:
        row = dot(at.coords[:-1], row_major_strides(kernel_shape[:-1]))
        return replace(at, coords=(*split_index(row, shape[:-1]), at.coords[-1]), axis=len(shape) - 1)
    each = at.flat if at.lanes == 1 else T.Ramp(at.flat, 1, at.lanes)
    return replace(at, coords=split_index(each, shape), axis=len(shape) - 1)


def same_storage(view: View, other: View) -> bool:
    """Whether equal coordinates lie at equal offsets in both buffers."""
    places = [(v.type.shape, v.type.channel_block, v.offset, v.strides) for v in (view, other)]
    return places[0] == places[1]


def load_operand(buffer: Buffer, operand: View, at: VectorAt, result: View) -> Expr:
    """The elements of an operand, broadcast to the result's shape, that belong to the result vector at ``at``."""
    type = operand.type
    if same_storage(operand, result):
        return load(buffer, at.flat, at.lanes)
    if type.size == 1:
        return broadcast(buffer[operand.offset], at.lanes)
    missing = result.type.rank - type.rank
    coords = [at.coords[missing + dim] if extent > 1 else 0 for dim, extent in enumerate(type.shape)]
    axis = at.axis - missing
    varies = axis >= 0 and type.shape[axis] > 1
    if type.channel_block:
        return _load_blocked(buffer, type, coords, axis, varies, at.lanes)
    if varies and result.type.channel_block and type.shape[axis] % at.lanes:
        # The operand has no padding: lanes past its last channel read that channel again.
        last = broadcast(tirx.const(type.shape[axis] - 1, "int32"), at.lanes)
        coords[axis] = tirx.Min(T.Ramp(coords[axis], 1, at.lanes), last)
    offset = dot(coords, operand.strides) + operand.offset
    if not isinstance(offset, int) and lanes_of(offset) == at.lanes > 1:
        return buffer[offset]
    return load_strided(buffer, offset, operand.strides[axis] if varies else 0, at.lanes)


def only_channels(vector: Expr, at: VectorAt, channels: int) -> Expr:
    """The vector of a blocked result with zero in the lanes past its last channel."""
    channel = at.coords[1] if at.lanes == 1 or at.axis != 1 else T.Ramp(at.coords[1], 1, at.lanes)
    exists = channel < broadcast(tirx.const(channels, "int32"), lanes_of(channel))
    if lanes_of(exists) != at.lanes:
        exists = broadcast(exists, at.lanes)
    return tirx.Select(exists, vector, broadcast(tirx.const(0, dtype_of(vector, 1)), at.lanes))


def _load_blocked(buffer: Buffer, type: TensorType, coords: list[Expr], axis: int, varies: bool, lanes: int) -> Expr:
    block, spatial = type.channel_block, type.shape[2:]
    blocks = -(-type.shape[1] // block)
    row = (coords[0] * blocks + coords[1] // block) * math.prod(spatial) + dot(coords[2:], row_major_strides(spatial))
    offset = row * block + coords[1] % block
    if not varies:
        return broadcast(buffer[offset], lanes)
    if axis == 1:
        return load(buffer, offset, lanes)
    return load_strided(buffer, offset, row_major_strides(spatial)[axis - 2] * block, lanes)


def flatten_physical(tensor: torch.Tensor, channel_block: int = 0) -> torch.Tensor:
    """A tensor as the flat buffer that a layout stores, booleans as bytes; the padding of the last block is zero."""
    if tensor.dtype is torch.bool:
        tensor = tensor.to(torch.uint8)
    if not channel_block:
        return tensor.contiguous().reshape(-1)
    batch, channels, *spatial = tensor.shape
    blocks = -(-channels // channel_block)
    padded = tensor.new_zeros((batch, blocks * channel_block, *spatial))
    padded[:, :channels] = tensor
    return padded.reshape(batch, blocks, channel_block, -1).transpose(2, 3).contiguous().reshape(-1)
