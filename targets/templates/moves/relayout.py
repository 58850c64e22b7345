"""Conversion between plain NCHW and the blocked layout NCHW{c}c, where the ``c`` channels of a block lie side by side.

Squares of ``c`` channels by ``c`` positions are transposed in registers: whole vectors are loaded and stored on both
sides. The positions left over at the end of an image are one more square that overlaps its predecessor; an image with
fewer positions than lanes is copied channel vector by channel vector. Channels missing in the last block are zero in
the blocked layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ...machines.target import Cpu
from ..base import Buffer, BufferSpec, Epilogue, Index
from ..parallelism import shared_loop
from ..vector.builder import Output, constant, load, loop, make_prim_func, store, when
from ..vector.vectors import in_register, lane_slice, load_strided, pieces, transpose

TO_BLOCKED = "to_blocked"
TO_PLAIN = "to_plain"


@dataclass(frozen=True)
class RelayoutSpec:
    """``direction`` (``"to_blocked"`` or ``"to_plain"``) of ``batch`` images with ``channels`` channels of
    ``positions`` elements.

    ``block`` is the number of channels in a block, a power of two; ``positions`` is the product of the spatial extents.
    """

    direction: str
    batch: int
    channels: int
    positions: int
    block: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.direction not in (TO_BLOCKED, TO_PLAIN):
            raise ValueError(f"direction must be {TO_BLOCKED!r} or {TO_PLAIN!r}, not {self.direction!r}")
        if min(self.batch, self.channels, self.positions) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        if self.block < 2 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two from 2 on, not {self.block}")

    @property
    def blocks(self) -> int:
        """Blocks of channels, the last one possibly padded."""
        return -(-self.channels // self.block)

    @property
    def plain_size(self) -> int:
        """Elements of the plain tensor."""
        return self.batch * self.channels * self.positions

    @property
    def blocked_size(self) -> int:
        """Elements of the blocked tensor, padding included."""
        return self.batch * self.blocks * self.positions * self.block

    @property
    def macs(self) -> int:
        """No arithmetic."""
        return 0


@dataclass(frozen=True)
class RelayoutKnobs:
    """Nothing to choose: the square is given by the block."""


def candidates(spec: RelayoutSpec, target: Cpu) -> list[RelayoutKnobs]:
    """Feasible knobs, best analytic guess first."""
    return [RelayoutKnobs()]


def build(spec: RelayoutSpec, target: Cpu, knobs: RelayoutKnobs = RelayoutKnobs()) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, out)``."""
    plain = BufferSpec("plain", spec.plain_size, spec.dtype)
    blocked = BufferSpec("blocked", spec.blocked_size, spec.dtype)
    to_blocked = spec.direction == TO_BLOCKED
    source, target_buffer = (plain, blocked) if to_blocked else (blocked, plain)
    write_square = _square_to_blocked if to_blocked else _square_to_plain
    write_position = _position_to_blocked if to_blocked else _position_to_plain

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        squares, rest = divmod(spec.positions, spec.block)
        # Threads share the blocks, and runs of positions where there are few blocks.
        runs = math.gcd(squares, 8) if spec.batch * spec.blocks < 4 * target.cores else 1
        extents = (spec.batch, spec.blocks, max(1, runs))
        with shared_loop(extents, bytes_moved=4 * (spec.plain_size + spec.blocked_size)) as (image, block, run):

            def of_channels(channels: int) -> Callable[[], None]:
                place = _Place(spec, buffers[0], out.buffer, image, block, channels)

                def write() -> None:
                    if not squares:
                        with loop(spec.positions) as position:
                            write_position(place, position)
                        return
                    length = squares // runs
                    with loop(length) as square:
                        write_square(place, (run * length + square) * spec.block)
                    if rest:
                        write_square(place, spec.positions - spec.block)

                return write

            partial = spec.channels % spec.block
            when(
                block < spec.blocks - 1 if partial and spec.blocks > 1 else not partial,
                of_channels(spec.block),
                of_channels(partial),
            )

    return make_prim_func("relayout", (source,), target_buffer, body, Epilogue(dtype=spec.dtype))


@dataclass(frozen=True)
class _Place:
    """One block of channels of one image, of which ``channels`` exist."""

    spec: RelayoutSpec
    source: Buffer
    out: Buffer
    image: Index
    block: Index
    channels: int

    def plain(self, channel: Index, position: Index) -> Index:
        """Offset in the plain tensor."""
        spec = self.spec
        return (self.image * spec.channels + self.block * spec.block + channel) * spec.positions + position

    def blocked(self, position: Index) -> Index:
        """Offset of the block's channels at one position in the blocked tensor."""
        spec = self.spec
        return ((self.image * spec.blocks + self.block) * spec.positions + position) * spec.block


def _square_to_blocked(place: _Place, first: Index) -> None:
    block, dtype = place.spec.block, place.spec.dtype
    rows = [in_register(load(place.source, place.plain(channel, first), block)) for channel in range(place.channels)]
    rows += [constant(0, block, dtype)] * (block - place.channels)
    for position, row in enumerate(transpose(rows)):
        store(place.out, place.blocked(first + position), row, block)


def _square_to_plain(place: _Place, first: Index) -> None:
    block = place.spec.block
    rows = [in_register(load(place.source, place.blocked(first + position), block)) for position in range(block)]
    for channel, row in enumerate(transpose(rows)[: place.channels]):
        store(place.out, place.plain(channel, first), row, block)


def _position_to_blocked(place: _Place, position: Index) -> None:
    spec = place.spec
    for start, lanes in pieces(place.channels, spec.block):
        value = load_strided(place.source, place.plain(start, position), spec.positions, lanes)
        store(place.out, place.blocked(position) + start, value, lanes)
    for start, lanes in pieces(spec.block - place.channels, spec.block):
        at = place.blocked(position) + place.channels + start
        store(place.out, at, constant(0, lanes, spec.dtype), lanes)


def _position_to_plain(place: _Place, position: Index) -> None:
    spec = place.spec
    vector = in_register(load(place.source, place.blocked(position), spec.block))
    if spec.positions == 1:
        for start, lanes in pieces(place.channels, spec.block):
            store(place.out, place.plain(start, position), lane_slice(vector, start, lanes), lanes)
        return
    for channel in range(place.channels):
        store(place.out, place.plain(channel, position), lane_slice(vector, channel, 1), 1)
