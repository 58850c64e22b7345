"""Direct convolution: a register tile of (rows x columns x output vectors), no im2col, no padded copy.

    for unit in parallel(image, group of output blocks, piece of the rows):
        for row tile, column tile:
            tile = 0
            for input block, kh, kw, channel in block:
                tile[row, column, vector] += broadcast(input[row, column]) * weight[vector]
            store(epilogue(tile))

Pointwise convolutions flatten height and width into one axis of rows, so a tile never ends at a row of the image.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.arithmetic import FLOAT32, Arithmetic
from ..vector.builder import Output, RegisterTile, bind, constant, load, loop, make_prim_func, prefetch, store, when
from ..windows.spatial import TapRange, TileRun, tile_runs
from ..windows.window_loops import for_each_range
from .space import candidates
from .spec import (
    Conv2dKnobs,
    Conv2dSpec,
    OutputGroups,
    arrangement,
    first_input_block,
    output_groups,
    pack_weight,
    reached_input_blocks,
)
from .tiling import estimate_cycles

__all__ = ["Conv2dKnobs", "Conv2dSpec", "arrangement", "build", "candidates", "estimate_cycles", "pack_weight"]


def build(
    spec: Conv2dSpec,
    target: Cpu,
    knobs: Conv2dKnobs,
    epilogue: Epilogue = NO_EPILOGUE,
    writer: Callable[..., ConvolutionWriter] | None = None,
) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)`` over flat buffers.

    The input is in ``spec.input_layout``; the output is blocked, and lanes of channels that do not exist hold what the
    epilogue makes of zero. Weights come from :func:`pack_weight` with the same knobs.
    """
    lanes = target.lanes()
    groups = output_groups(spec, target, knobs.vectors)
    weight_rows = sum(g.count * g.vectors * g.span for g in groups) * spec.input_block(target) * spec.taps
    inputs = (
        BufferSpec("data", spec.input_size(target), spec.dtype),
        BufferSpec("weight", weight_rows * lanes, spec.dtype),
    )
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        (writer or ConvolutionWriter)(spec, target, knobs, main[0], main[1], out).write()

    return make_prim_func("conv2d", inputs, output, body, epilogue)


class Image:
    """One image of the batch, which a unit computes a part of: where it is read, and where its results go."""

    first_weight: Index = 0
    first_sums: Index = 0  # where what its sums start from begins, for writers that have a table of that
    columns_adjoin: bool = True  # whether results of neighbouring columns lie side by side

    def __init__(self, conv: ConvolutionWriter, index: Index) -> None:
        self.conv = conv
        self.n = index

    def depth_taps(self) -> contextlib.AbstractContextManager[Index]:
        """The loop over taps in depth, of which an image has none; it sets what the next two answer."""
        return contextlib.nullcontext()

    def plane(self, channel: Index) -> Index:
        """The plane of pixels that is read, of a channel counted over the whole batch."""
        return channel

    def tap(self, block: Index) -> Index:
        """Kernel planes before the one that is used, in the weights of an output group."""
        return block

    def at(self, block: Index, y: Index, x: Index) -> VectorAt:
        """Where the sums of an output block at one position go."""
        conv = self.conv
        rows, columns = conv.row_window, conv.column_window
        flat = (((self.n * conv.output_blocks + block) * rows.out + y) * columns.out + x) * conv.lanes
        if conv.spec.pointwise:
            y, x = y // conv.spec.out_w, y % conv.spec.out_w
        return VectorAt((self.n, block * conv.lanes, y, x), 1, conv.lanes, flat)


@dataclass
class ConvolutionWriter:
    """Writes the loops of one convolution; methods go from the outermost loop inwards."""

    image: ClassVar[type[Image]] = Image

    spec: Conv2dSpec
    target: Cpu
    knobs: Conv2dKnobs
    data: Buffer
    weight: Buffer
    output: Output
    arithmetic: Arithmetic = FLOAT32

    def __post_init__(self) -> None:
        spec, target, knobs, arithmetic = self.spec, self.target, self.knobs, self.arithmetic
        self.lanes = target.lanes()
        self.block = spec.input_block(target) // arithmetic.packing
        self.input_blocks = spec.input_blocks(target)
        self.output_blocks = spec.output_blocks(target)
        self.row_window, self.column_window = spec.windows()
        # Distances in the input: between channels, between neighbouring columns; and planes of pixels in one block.
        self.blocked = spec.input_layout == "blocked"
        self.channel_step = 1 if self.blocked else spec.h * spec.w
        self.pixel_step = self.block if self.blocked else 1
        self.planes = 1 if self.blocked else self.block
        self.columns = tile_runs(self.column_window, knobs.columns)
        # Tiles one row high find their kernel rows at run time: one piece of code instead of three or more.
        self.dynamic_rows = knobs.rows == 1 and self.row_window.kernel > 1
        single_rows = TileRun(0, 1, self.row_window.out, None)
        self.rows = [single_rows] if self.dynamic_rows else tile_runs(self.row_window, knobs.rows)
        self.row_limit = max(run.width for run in self.rows)
        self.row_tiles = sum(run.count for run in self.rows)
        self.units = min(knobs.spatial_units, self.row_tiles)
        self.groups = output_groups(spec, target, knobs.vectors)

    def first_sum(self, image: Image, output_block: Index, y: Index, x: int) -> Expr:
        """What the sums of one vector start from, at a position or at one of which the same taps read padding."""
        return constant(0, self.lanes, self.arithmetic.sum_type)

    def write(self) -> None:
        """The parallel loop over units and the choice of output group."""
        total = sum(run.count for run in self.groups)
        if self.knobs.order == "weights":
            with shared_loop((self.images, total, self.units), macs=self.spec.macs) as (index, group, unit):
                self._dispatch_group(index, group, unit)
        else:
            with shared_loop((self.images, self.units, total), macs=self.spec.macs) as (index, unit, group):
                self._dispatch_group(index, group, unit)

    @property
    def images(self) -> int:
        """Images that results are computed for."""
        return self.spec.images

    def _dispatch_group(self, index: Index, group: Index, unit: Index) -> None:
        main = self.groups[0]
        image = self.image(self, index)
        if len(self.groups) == 1:
            self._group(main, image, group, unit)
            return
        when(
            group < main.count,
            lambda: self._group(main, image, group, unit),
            lambda: self._group(self.groups[1], image, 0, unit),
        )

    def _group(self, groups: OutputGroups, image: Image, group: Index, unit: Index) -> None:
        first_output = bind(groups.first + group * groups.vectors)
        first_input = first_input_block(self.spec, self.target, first_output)
        if reached_input_blocks(self.spec, self.target, groups) > self.input_blocks:
            first_input = tirx.min(first_input, self.input_blocks - groups.span)
        _GroupWriter(self, groups, image, first_output, bind(first_input), group).write(unit)


@dataclass
class _GroupWriter:
    """Writes what one unit computes: some row tiles of one group of output blocks."""

    conv: ConvolutionWriter
    groups: OutputGroups
    image: Image
    first_output: Index
    first_input: Index
    group: Index

    def __post_init__(self) -> None:
        conv, groups, spec = self.conv, self.groups, self.conv.spec
        self.lanes = conv.lanes
        self.vectors = groups.vectors
        taps = spec.taps
        self.weight_row = self.vectors * self.lanes  # packed weights of one input channel and one tap
        self.weight_block = taps * conv.block * self.weight_row
        preceding = sum(g.count * g.vectors * g.span for g in conv.groups if g.first < groups.first)
        preceding *= taps * conv.block * self.lanes
        self.weight_base = bind(self.image.first_weight + preceding + self.group * (groups.span * self.weight_block))
        # Without convolution groups, the last block stops at the last real channel.
        channels = -(-spec.c // conv.arithmetic.packing)
        self.tail = channels % conv.block if spec.groups == 1 else 0
        self.full_blocks = groups.span - bool(self.tail)
        self.chunk = min(conv.knobs.block_chunk or groups.span, groups.span)
        self.chunks = -(-groups.span // self.chunk)

    def write(self, unit: Index) -> None:
        """Loop over this unit's row tiles, once for each chunk of input blocks."""
        tiles, units = self.conv.row_tiles, self.conv.units
        begin = 0 if units == 1 else bind(unit * tiles // units)
        end = tiles if units == 1 else bind((unit + 1) * tiles // units)
        if self.chunks > 1:
            self._allocate_partial_sums(-(-tiles // units))
        with loop(self.chunks) as chunk, loop(end, begin) as tile:
            self._row_tile(chunk, tile, tile - begin, self.conv.rows, 0)

    def _allocate_partial_sums(self, tiles: int) -> None:
        self.partial_row_tile = self.conv.row_limit * self.conv.column_window.out * self.weight_row
        self.partial = T.alloc_buffer((tiles * self.partial_row_tile,), self.conv.arithmetic.sum_type)

    def _row_tile(self, chunk: Index, tile: Index, slot: Index, runs: Sequence[TileRun], passed: int) -> None:
        run = runs[0]

        def write_run() -> None:
            y = bind(run.start + (tile - passed) * run.width)
            for columns in self.conv.columns:
                with loop(columns.count) as index:
                    x = bind(columns.start + index * columns.width)
                    _TileWriter(self, run, columns, y, x, chunk, slot).write()

        if len(runs) == 1:
            write_run()
            return
        behind = passed + run.count
        when(tile < behind, write_run, lambda: self._row_tile(chunk, tile, slot, runs[1:], behind))


@dataclass
class _TileWriter:
    """Writes one register tile: clear, accumulate, finish."""

    group: _GroupWriter
    rows: TileRun
    columns: TileRun
    y: Index
    x: Index
    chunk: Index
    slot: Index

    def __post_init__(self) -> None:
        group, self.conv = self.group, self.group.conv
        accumulators = self.rows.width * self.columns.width * group.vectors
        self.tile = RegisterTile(accumulators, group.lanes, self.conv.arithmetic.sum_type)

    def write(self) -> None:
        """One pass over a chunk of input blocks."""
        group = self.group
        if group.chunks == 1:
            self._start()
            self._accumulate(0, group.full_blocks, self.conv.block)
            self._accumulate(group.full_blocks, group.full_blocks + bool(group.tail), group.tail)
            self._finish()
            return
        begin = bind(self.chunk * group.chunk)
        when(self.chunk == 0, self._start, lambda: self._partial_sums(self._reload))
        self._accumulate(begin, bind(tirx.min(begin + group.chunk, group.full_blocks)), self.conv.block)
        when(self.chunk == group.chunks - 1, self._last_chunk, lambda: self._partial_sums(self._spill))

    def _start(self) -> None:
        for index, row, column, vector in self._places():
            y = (self.y if self.rows.taps is None else self.rows.start) + row
            x = (self.x if self.columns.taps is None else self.columns.start) + column
            self.tile[index] = self.conv.first_sum(self.group.image, self.group.first_output + vector, y, x)

    def _last_chunk(self) -> None:
        full = self.group.full_blocks
        self._accumulate(full, full + bool(self.group.tail), self.group.tail)
        self._finish()

    def _places(self) -> Iterator[tuple[int, int, int, int]]:
        """Index in the tile, row, column and vector of every accumulator."""
        places = itertools.product(range(self.rows.width), range(self.columns.width), range(self.group.vectors))
        return ((index, *place) for index, place in enumerate(places))

    def _accumulate(self, begin: Index, end: Index, channels: int) -> None:
        if isinstance(end, int) and begin == end:
            return
        with self.group.image.depth_taps(), loop(end, begin) as block:

            def kernel_rows(rows: TapRange) -> None:
                with loop(rows.end, rows.begin) as ky:
                    for_each_range(
                        self.conv.column_window,
                        self.columns,
                        self.x,
                        lambda columns: self._kernel_columns(block, ky, channels, columns, rows.positions),
                    )

            for_each_range(self.conv.row_window, self.rows, self.y, kernel_rows)

    def _kernel_columns(self, block: Index, ky: Index, channels: int, taps: TapRange, rows: Sequence[int]) -> None:
        """Neighbouring taps of all channels lie one behind the other in input and weights: one long loop for both."""
        used = (rows, taps.positions)
        if self.conv.blocked and channels == self.conv.block and self.conv.column_window.dilation == 1:
            self._channels(block, ky, taps.begin, taps.end - taps.begin, channels, used)
            return
        with loop(taps.end, taps.begin) as kx:
            self._channels(block, ky, kx, 1, channels, used)

    def _channels(
        self, block: Index, ky: Index, kx: Index, count: Index, channels: int, used: tuple[Sequence[int], Sequence[int]]
    ) -> None:
        group, conv = self.group, self.conv
        rows, columns = conv.row_window, conv.column_window
        plane = group.image.plane((group.image.n * conv.input_blocks + group.first_input + block) * conv.planes)
        image_row = plane * rows.size + self.y * rows.stride + ky * rows.dilation - rows.pad
        column = self.x * columns.stride + kx * columns.dilation - columns.pad
        data = bind((image_row * columns.size + column) * conv.pixel_step)
        tap = (group.image.tap(block) * rows.kernel + ky) * columns.kernel + kx
        weight = bind(group.weight_base + tap * (conv.block * group.weight_row))
        unit = count * channels if isinstance(count, int) else channels
        unroll = conv.knobs.unroll if unit % conv.knobs.unroll == 0 else 1
        with loop(count * channels // unroll) as step:
            for channel in range(unroll):
                self._outer_product(data, weight, step * unroll + channel, used)

    def _outer_product(
        self, data: Index, weight: Index, channel: Index, used: tuple[Sequence[int], Sequence[int]]
    ) -> None:
        """Every input position of one channel times every weight vector."""
        group, conv = self.group, self.conv
        lanes = group.lanes
        weight = bind(weight + channel * group.weight_row)
        data = bind(data + channel * conv.channel_step)
        if conv.knobs.prefetch:
            for vector in range(group.vectors):
                prefetch(conv.weight, weight + (conv.knobs.prefetch + vector) * lanes)
        places = (weight + vector * lanes for vector in range(group.vectors))
        vectors = [conv.arithmetic.right(load(conv.weight, place, lanes)) for place in places]
        column_step = conv.column_window.stride * conv.pixel_step
        row_step = conv.row_window.stride * conv.column_window.size * conv.pixel_step
        for row, column in itertools.product(*used):
            value = conv.arithmetic.left(conv.data[data + (row * row_step + column * column_step)], lanes)
            first = (row * self.columns.width + column) * group.vectors
            for index, vector in enumerate(vectors, first):
                conv.arithmetic.multiply_add(self.tile, index, value, vector)

    def _finish(self) -> None:
        """Store the results; where the epilogue can join them, those of a row, or of several whole rows, together."""
        image, whole_rows = self.group.image, self.columns.width == self.conv.column_window.out
        joins = image.columns_adjoin and self.conv.output.epilogue.joint is not None
        lines: dict[tuple[int, ...], list[tuple[int, VectorAt]]] = {}
        for index, row, column, vector in self._places():
            line = (vector, 0 if whole_rows else row) if joins else (index,)
            at = image.at(self.group.first_output + vector, self.y + row, self.x + column)
            lines.setdefault(line, []).append((index, at))
        for found in lines.values():
            self.conv.output.store_run([self.tile[index] for index, _ in found], [at for _, at in found])

    def _partial_sums(self, action: Callable[[int, Index], None]) -> None:
        group = self.group
        base = bind(self.slot * group.partial_row_tile)
        for index, row, column, vector in self._places():
            place = (row * self.conv.column_window.out + self.x + column) * group.weight_row
            action(index, base + place + vector * group.lanes)

    def _reload(self, index: int, offset: Index) -> None:
        self.tile[index] = load(self.group.partial, offset, self.group.lanes)

    def _spill(self, index: int, offset: Index) -> None:
        store(self.group.partial, offset, self.tile[index], self.group.lanes)
