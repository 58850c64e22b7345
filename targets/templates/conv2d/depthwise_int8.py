"""Depthwise convolution of integers in blocked layout: four neighbouring taps of each channel make one dot product.

    for plane, piece of its rows in parallel:
        padded = the input rows that the piece reads, and their padding
        for tile of rows and columns:
            for input row, words of four columns of it:
                words = transposed(padded[column ... + 3])
                for kernel row, phase:
                    tile[input row - kernel row, column + phase] += words . weight[kernel row, phase]
                store the output row that is complete

Neighbouring columns of a block lie one behind the other: what four taps read is one load, and a shuffle brings the four
numbers of each channel together. Such words serve all output rows of a tile that read them, and as many neighbouring
outputs as need no further words for it, the *phases*: with three taps, a word of four columns has those of two outputs,
one with weights ``(a, b, c, 0)`` and one with ``(0, a, b, c)``. A row is stored as soon as it is complete, so that few
sums are in registers and its epilogue runs beside the products of the next one. See docs/kernels.md for the bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import Output, RegisterTile, bind, for_each, load, loop, make_prim_func
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.dot_product import WORD, layer_product
from ..vector.operand_types import check_weight_shape, is_integer
from ..vector.vectors import shuffle
from ..windows.padded_rows import UNROLLED_WORDS, PaddedRows, PieceWriter
from ..windows.spatial import TileRun, balanced_split
from . import depthwise
from .spec import Conv2dSpec

PADDED_SHARE = 2  # the padded rows of a piece take at most this part of L1
MOST_UNROLLED = 64  # words of weights for which all kernel rows are written out
TILES = ((7, 4), (4, 4), (2, 8), (2, 4), (1, 8), (1, 4))  # rows and columns, the best guess first


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype)


@dataclass(frozen=True)
class DepthwiseInt8Knobs:
    """``rows`` and ``columns`` of outputs in a register tile, and ``pieces`` of each plane's rows for threads."""

    rows: int
    columns: int
    pieces: int


@dataclass(frozen=True)
class _Plan:
    """Sizes that follow from a spec and its knobs."""

    spec: Conv2dSpec
    knobs: DepthwiseInt8Knobs
    lanes: int

    @property
    def blocks(self) -> int:
        """Channel blocks."""
        return -(-self.spec.c // self.lanes)

    @property
    def quads(self) -> int:
        """Words that one kernel row takes: groups of four horizontal taps."""
        return -(-self.spec.kernel[1] // WORD)

    @property
    def phases(self) -> int:
        """Neighbouring outputs that read the same words, each with weights of its own."""
        _, columns = self.spec.axes()
        room = self.quads * WORD - columns.kernel
        apart = room // columns.stride + 1 if columns.dilation == 1 else 1
        return max(count for count in (1, 2, 4) if count <= apart)

    @property
    def written_out(self) -> bool:
        """Whether the code has all kernel rows, and tiles of several rows; else kernel rows are a loop."""
        return self.spec.kernel[0] * self.quads * self.phases <= MOST_UNROLLED

    @property
    def padded(self) -> PaddedRows:
        """The padded rows of a piece."""
        reach = (self.quads * WORD - 1) * self.spec.dilation[1] + 1
        rows = self.knobs.rows if self.written_out else 1
        return PaddedRows(*self.spec.axes(), self.knobs.pieces, reach, rows, alignment=WORD)

    @property
    def column_runs(self) -> list[TileRun]:
        """The tiles of a band, of whole words' outputs but for the last one."""
        groups = balanced_split(-(-self.spec.out_w // self.phases), max(1, self.knobs.columns // self.phases))
        widths = [count * self.phases for count in groups]
        widths[-1] -= sum(widths) - self.spec.out_w
        runs, start = [], 0
        for width, equal in itertools.groupby(widths):
            runs.append(TileRun(start, width, len(list(equal)), None))
            start += width * runs[-1].count
        return runs

    groups = 1

    @property
    def column_bytes(self) -> int:
        """A column of a row is a block."""
        return self.lanes

    @property
    def padded_bytes(self) -> int:
        """Size of the padded rows of a piece."""
        return self.padded.most_rows * self.padded.length * self.lanes

    @property
    def weight_block(self) -> int:
        """Words of one channel block's weights."""
        return self.spec.kernel[0] * self.phases * self.quads * self.lanes


def candidates(spec: Conv2dSpec, target: Cpu) -> list[DepthwiseInt8Knobs]:
    """Feasible knobs, the best analytic guess first: pieces whose padded rows stay in L1."""
    least = depthwise.candidates(replace(spec, dtype="float32", zero_point=0), target)[0].pieces
    room = target.l1_bytes // PADDED_SHARE
    found = []
    for rows, columns in TILES:
        one_piece = _Plan(spec, DepthwiseInt8Knobs(min(rows, spec.out_h), min(columns, spec.out_w), 1), target.lanes())
        if rows > 1 and not one_piece.written_out:
            continue
        bands = len(one_piece.padded.heights)
        plans = (replace(one_piece, knobs=replace(one_piece.knobs, pieces=count)) for count in range(least, bands))
        pieces = next((plan.knobs.pieces for plan in plans if plan.padded_bytes <= room), bands)
        found.append(replace(one_piece.knobs, pieces=pieces))
    return list(dict.fromkeys(found))


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseInt8Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight (c, 1, kh, kw) to [channel block, kh, phase, word, lane, tap]; the table follows."""
    check_weight_shape(weight, (spec.c, 1, *spec.kernel))
    plan = _Plan(spec, knobs, target.lanes())
    height, width = spec.kernel
    padded = weight.new_zeros(plan.blocks * plan.lanes, height, plan.phases, plan.quads * WORD)
    for phase in range(plan.phases):
        first = phase * spec.stride[1]
        padded[: spec.c, :, phase, first : first + width] = weight[:, 0]
    parts = padded.reshape(plan.blocks, plan.lanes, height, plan.phases, plan.quads, WORD)
    packed = parts.permute(0, 2, 3, 4, 1, 5).reshape(-1)
    zero = spec.zero_point + layer_product(target, spec).offset
    return append_table(packed, uniform_table(weight, zero, plan.blocks * plan.lanes)) if zero else packed


def build(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseInt8Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    plan = _Plan(spec, knobs, target.lanes())
    channels = plan.blocks * plan.lanes
    words = plan.blocks * plan.weight_block
    zero = spec.zero_point + layer_product(target, spec).offset
    table = channels if zero else 0
    inputs = (
        BufferSpec("data", spec.n * channels * spec.h * spec.w, spec.dtype),
        BufferSpec("weight", packed_bytes(words * WORD, table), "int8"),
    )
    output = BufferSpec("output", spec.n * channels * spec.out_h * spec.out_w, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        data, packed = main
        weight = view_as(packed, "int32", words)
        corrections = view_table(packed, words * WORD, table) if table else None
        moved = sum(buffer.size for buffer in (*inputs, output))
        with shared_loop((spec.n * plan.blocks, knobs.pieces), macs=spec.macs, bytes_moved=moved) as (plane, piece):
            main = view_as(data, "uint8", inputs[0].size), weight, corrections
            _PieceWriter(plan, target, main, out, plane).write(piece)

    return make_prim_func("depthwise_int8", inputs, output, body, epilogue)


class _PieceWriter(PieceWriter):
    """Writes some rows of one plane."""

    plan: _Plan

    def write(self, piece: Index) -> None:
        """The block of the plane is named once."""
        self.block = bind(self.plane % self.plan.blocks)
        super().write(piece)

    def pad_rows(self, first: Index, count: Index, padded: Buffer) -> None:
        """The rows of the plane."""
        with loop(count) as row:
            self.pad_row(self.plane, first + row, padded, bind(row * (self.plan.padded.length * self.lanes)))

    def tile(self, padded: Buffer, group: Index, y: Index, row: Index, x: Index, size: tuple[int, int]) -> None:
        """The one vector of each output."""
        height, _ = size
        rows, _ = self.plan.spec.axes()
        tile = _Tile(self, padded, y, x, size)
        line = bind(row * rows.stride)
        if not self.plan.written_out:
            tile.start(0)
            with loop(rows.kernel) as ky:
                tile.multiply(line + ky * rows.dilation, [(0, ky)])
            tile.store(0)
            return
        users: dict[int, list[tuple[int, int]]] = {}  # by input row: output rows, and which kernel row of theirs it is
        for output, ky in itertools.product(range(height), range(rows.kernel)):
            users.setdefault(output * rows.stride + ky * rows.dilation, []).append((output, ky))
        for input_row, pairs in sorted(users.items()):
            for output, ky in pairs:
                if ky == 0:
                    tile.start(output)
            tile.multiply(line + input_row, pairs)
            for output, ky in pairs:
                if ky == rows.kernel - 1:
                    tile.store(output)


class _Tile:
    """The sums of some rows and columns of outputs, each row from its start until it is stored."""

    def __init__(self, piece: _PieceWriter, padded: Buffer, y: Index, x: Index, size: tuple[int, int]) -> None:
        self.piece = piece
        self.plan = piece.plan
        self.lanes = piece.lanes
        self.padded = padded
        self.y = y
        self.x = x
        height, self.width = size
        self.sums = RegisterTile(height * self.width, self.lanes, piece.products.sum_type)
        self.weight = bind(piece.block * self.plan.weight_block)
        self.factors: dict[tuple[int, int, int], Any] = {}  # those of kernel rows that are written out

    def start(self, row: int) -> None:
        """Set the sums of an output row to what they start from."""
        for column in range(self.width):
            self.sums[row * self.width + column] = self.piece.first_sum(self.piece.block)

    def multiply(self, input_row: Index, users: Sequence[tuple[int, Index]]) -> None:
        """Add the products of a padded row to the sums of output rows, for which it is a certain kernel row."""
        plan = self.plan
        _, columns = plan.spec.axes()
        line = bind(input_row * plan.padded.length + plan.padded.first_read + self.x * columns.stride)
        found: dict[int, Any] = {}  # words that are written out, by the column that they begin at

        def words_at(column: Index) -> Any:
            if not isinstance(column, int):
                return self.piece.products.prepare(self._words(line + column))
            if column not in found:
                found[column] = self.piece.products.prepare(self._words(line + column))
            return found[column]

        def multiply(quad: Index) -> None:
            for first in range(0, self.width, plan.phases):
                words = words_at(first * columns.stride + quad * WORD * columns.dilation)
                for (row, ky), phase in itertools.product(users, range(min(plan.phases, self.width - first))):
                    place = row * self.width + first + phase
                    self.piece.products.multiply_add(self.sums, place, words, self._factors(ky, phase, quad))

        for_each(plan.quads, UNROLLED_WORDS, multiply)

    def store(self, row: int) -> None:
        """Finish an output row."""
        plan, piece, lanes = self.plan, self.piece, self.lanes
        rows, columns = plan.spec.axes()
        image, channel, y = piece.plane // plan.blocks, piece.block * lanes, self.y + row
        first = bind((piece.plane * rows.out + y) * columns.out + self.x)
        places = [
            VectorAt((image, channel, y, self.x + column), 1, lanes, (first + column) * lanes)
            for column in range(self.width)
        ]
        piece.out.store_run([self.sums[row * self.width + column] for column in range(self.width)], places)

    def _factors(self, ky: Index, phase: int, quad: Index) -> Any:
        if not isinstance(ky, int) or not isinstance(quad, int):
            return self._load_factors(ky, phase, quad)
        if (ky, phase, quad) not in self.factors:
            self.factors[ky, phase, quad] = self._load_factors(ky, phase, quad)
        return self.factors[ky, phase, quad]

    def _load_factors(self, ky: Index, phase: int, quad: Index) -> Any:
        place = self.weight + ((ky * self.plan.phases + phase) * self.plan.quads + quad) * self.lanes
        return self.piece.products.right(load(self.piece.weight, place, self.lanes))

    def _words(self, column: Index) -> Expr:
        """What four taps read from a column on, the four bytes of each channel side by side."""
        lanes, dilation = self.lanes, self.plan.spec.dilation[1]
        order = [tap * lanes + lane for lane in range(lanes) for tap in range(WORD)]
        if dilation == 1:
            vectors = [load(self.padded, column * lanes, WORD * lanes)]
        else:
            vectors = [load(self.padded, (column + tap * dilation) * lanes, lanes) for tap in range(WORD)]
        return tirx.reinterpret(f"int32x{lanes}", shuffle(vectors, order))
