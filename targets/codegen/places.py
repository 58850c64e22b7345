"""Which values lie inside another value's buffer, so that concatenations and slices cost nothing.

A concatenation along a dimension before which all extents are 1 puts whole buffers one after the other: the kernels
that make its parts write straight into it. In channel blocks the same holds for whole blocks of one image. The other
way round, a slice of whole blocks is a stretch of its operand's buffer. ::

    %3 = concat(%1, %2) {axis=1}                %1: 0 elements into %3, %2: %1.physical_size elements into %3
    %4 = slice(%3) {axis=1, start=64, …}        %4: 64 * height * width elements into %3

Places nest: DenseNet's growing concatenations share the last one's buffer. A value lies in one place only: the first
concatenation that can take it does, the others copy. Buffers start at multiples of `ALIGNMENT` bytes; concatenations
with a part that would not are left to a kernel, as are graph inputs and outputs, constants, and values that are views
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...ir import Graph, Op, Value, is_constant
from ...ir.ops import ConcatOp, RelayoutOp, SliceOp
from ..machines.target import ALIGNMENT


@dataclass(frozen=True)
class Place:
    """``offset`` elements into the buffer of ``base``, which may itself lie inside another one."""

    base: Value
    offset: int


def find_places(graph: Graph) -> dict[Value, Place]:
    """The values of ``graph`` that are written to, or read from, a stretch of another value's buffer."""
    places: dict[Value, Place] = {}
    for op in graph.ops:
        if isinstance(op, SliceOp):
            offset = _slice_offset(op)
            if offset is not None and _owns_buffer(op.x, places):
                places[op.result] = Place(op.x, offset)
        elif isinstance(op, ConcatOp):
            for part, offset in part_offsets(op) or ():
                if _owns_buffer(part, {}) and part not in places and not part.is_output:
                    places[part] = Place(op.result, offset)
    return places


def part_offsets(op: ConcatOp) -> list[tuple[Value, int]] | None:
    """Each part of a concatenation with its offset in the result; None if they are interleaved or unaligned there."""
    result = op.result.type
    if math.prod(result.shape[: op.attrs.axis]) != 1:
        return None
    block = result.channel_block
    places, offset = [], 0
    for part in op.parts:
        places.append((part, offset))
        offset += part.type.logical.with_layout(block).physical_size
    whole = not block or op.attrs.axis != 1 or all(part.shape[1] % block == 0 for part in op.parts[:-1])
    return places if whole and all(is_aligned(part, offset) for part, offset in places) else None


def is_aligned(value: Value, offset: int) -> bool:
    """Whether a buffer of ``value``'s element type may start at ``offset`` elements."""
    return offset * value.type.dtype.itemsize % ALIGNMENT == 0


def resolve(value: Value, places: Mapping[Value, Place]) -> Place:
    """The outermost buffer around ``value``, and the offset there."""
    offset = 0
    while value in places:
        place = places[value]
        value, offset = place.base, offset + place.offset
    return Place(value, offset)


def keeps_bytes(op: Op) -> bool:
    """Whether a relayout leaves every byte where it is: one position, whole channel blocks."""
    return isinstance(op, RelayoutOp) and op.x.type.stays_in_place(op.result.type.channel_block)


def _slice_offset(op: SliceOp) -> int | None:
    """Where a slice of whole channel blocks of one image starts; None for any other slice."""
    x, attrs = op.x.type, op.attrs
    block = x.channel_block
    if not block or op.result.type.channel_block != block or attrs.axis != 1 or attrs.step != 1 or x.shape[0] != 1:
        return None
    if attrs.start % block or (attrs.stop % block and attrs.stop != x.shape[1]):
        return None
    offset = attrs.start * math.prod(x.shape[2:])
    return offset if is_aligned(op.x, offset) else None


def _owns_buffer(value: Value, places: Mapping[Value, Place]) -> bool:
    """Whether a kernel writes ``value``, in a buffer of its own or at its place."""
    if value in places:
        return True
    return value.op is not None and not is_constant(value) and not value.op.strided and not keeps_bytes(value.op)
