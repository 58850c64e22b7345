"""Convolution of the few channels of a picture in integers: four neighbouring taps of one channel make a dot product.

    for image, piece of the rows in parallel:
        padded = the input rows that the piece reads, and their padding
        for group of outputs, row, column tile:
            for channel, kernel row, four taps:
                tile[column, vector] += broadcast(padded[channel, column * stride ... + 3]) . weight[vector]

The input is plain, so what four taps read are four bytes in a row. Taps that are further apart (dilation) are
multiplied one by one, as dot products with three weights of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import Output, RegisterTile, bind, for_each, load, loop, make_prim_func, when
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.dot_product import WORD, layer_product
from ..vector.operand_types import check_weight_shape, is_integer
from ..windows.padded_rows import UNROLLED_WORDS, PaddedRows, PieceWriter
from ..windows.spatial import TileRun, balanced_split, tile_runs
from .spec import Conv2dSpec

PADDED_SHARE = 2  # the padded rows of a piece take at most this part of L1
MOST_VECTORS = 4


@dataclass(frozen=True)
class Conv2dInt8NarrowKnobs:
    """How the kernel is tiled.

    Attributes
    ----------
    vectors, columns
        Output channel blocks and output columns of a register tile.
    row_units
        Pieces of each image, every one with padded rows of its own.
    """

    vectors: int
    columns: int
    row_units: int = 1


@dataclass(frozen=True)
class _Plan:
    """Sizes that follow from a spec and its knobs."""

    spec: Conv2dSpec
    knobs: Conv2dInt8NarrowKnobs
    lanes: int

    @property
    def taps(self) -> int:
        """Horizontal taps in one word."""
        return WORD if self.spec.dilation[1] == 1 else 1

    @property
    def words(self) -> int:
        """Words of one kernel row of one channel."""
        return -(-self.spec.kernel[1] // self.taps)

    @property
    def groups(self) -> int:
        """Groups of output blocks; blocks past the last one are computed and dropped."""
        return -(-self.spec.o // (self.knobs.vectors * self.lanes))

    @property
    def group_size(self) -> int:
        """Packed words of one group's weights."""
        return self.spec.c * self.spec.kernel[0] * self.words * self.knobs.vectors * self.lanes

    @property
    def outputs(self) -> int:
        """Outputs of all groups."""
        return self.groups * self.knobs.vectors * self.lanes

    @property
    def padded(self) -> PaddedRows:
        """The padded rows of a piece, of one channel."""
        reach = (self.words - 1) * self.taps * self.spec.dilation[1] + WORD
        return PaddedRows(*self.spec.axes(), self.knobs.row_units, reach)

    column_bytes = 1

    @property
    def column_runs(self) -> list[TileRun]:
        """The tiles of a row."""
        return tile_runs(self.padded.without_padding, self.knobs.columns)

    @property
    def padded_bytes(self) -> int:
        """Size of the padded rows of a piece."""
        return self.spec.c * self.padded.most_rows * self.padded.length


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype) and spec.groups == 1 and spec.input_layout == "plain"


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dInt8NarrowKnobs]:
    """Feasible knobs, the best analytic guess first: few loads for each product, no blocks that are dropped."""
    registers = target.vector_registers - layer_product(target, spec).extra_registers
    blocks = spec.output_blocks(target)
    found = []
    for vectors in range(1, min(MOST_VECTORS, blocks) + 1):
        columns = max(balanced_split(spec.out_w, max(1, (registers - vectors - 1) // vectors)))
        found.append(Conv2dInt8NarrowKnobs(vectors, columns))

    def cost(knobs: Conv2dInt8NarrowKnobs) -> float:
        tiles = -(-blocks // knobs.vectors) * -(-spec.out_w // knobs.columns)
        products, loads = knobs.vectors * knobs.columns, knobs.vectors + knobs.columns
        return tiles * (products + loads / 2)

    return [_split(_Plan(spec, knobs, target.lanes()), target) for knobs in sorted(found, key=cost)]


def _split(plan: _Plan, target: Cpu) -> Conv2dInt8NarrowKnobs:
    """Pieces whose padded rows stay in L1, and that give all cores work."""
    height, room = plan.spec.out_h, target.l1_bytes // PADDED_SHARE
    cut = (replace(plan, knobs=replace(plan.knobs, row_units=units)) for units in range(1, height))
    units = next((one.knobs.row_units for one in cut if one.padded_bytes <= room), height)
    return replace(plan.knobs, row_units=min(height, -(-units // target.cores) * target.cores))


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8NarrowKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight of shape (o, c, kh, kw) to [output group, c, kh, word, output, tap]; the table follows."""
    check_weight_shape(weight, (spec.o, spec.c, *spec.kernel))
    plan = _Plan(spec, knobs, target.lanes())
    by_word = weight.new_zeros(plan.outputs, spec.c, spec.kernel[0], plan.words * plan.taps)
    by_word[: spec.o, ..., : spec.kernel[1]] = weight
    padded = weight.new_zeros(plan.groups, plan.outputs // plan.groups, spec.c, spec.kernel[0], plan.words, WORD)
    padded[..., : plan.taps] = by_word.reshape(*padded.shape[:-1], plan.taps)
    packed = padded.permute(0, 2, 3, 4, 1, 5).reshape(-1)
    zero = spec.zero_point + layer_product(target, spec).offset
    return append_table(packed, uniform_table(weight, zero, plan.outputs)) if zero else packed


def build(
    spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8NarrowKnobs, epilogue: Epilogue = NO_EPILOGUE
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; plain in, blocked out."""
    plan = _Plan(spec, knobs, target.lanes())
    words = plan.groups * plan.group_size
    table = plan.outputs if spec.zero_point + layer_product(target, spec).offset else 0
    data_bytes = spec.n * spec.c * spec.h * spec.w
    weight = BufferSpec("weight", packed_bytes(words * WORD, table), "int8")
    channels = spec.output_blocks(target) * target.lanes()
    output = BufferSpec("output", spec.n * channels * spec.out_h * spec.out_w, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        data, packed = view_as(main[0], "uint8", data_bytes), view_as(main[1], "int32", words)
        corrections = view_table(main[1], words * WORD, table) if table else None
        with shared_loop((spec.n, knobs.row_units), macs=spec.macs) as (n, unit):
            _UnitWriter(plan, target, (data, packed, corrections), out, n).write(unit)

    return make_prim_func(
        "conv2d_int8_narrow", (BufferSpec("data", data_bytes, spec.dtype), weight), output, body, epilogue
    )


class _UnitWriter(PieceWriter):
    """Writes some rows of the image that is its plane."""

    plan: _Plan

    def pad_rows(self, first: Index, count: Index, padded: Buffer) -> None:
        """The rows of all channels."""
        place = self.plan.padded
        with loop(self.spec.c) as channel, loop(count) as row:
            to = bind((channel * place.most_rows + row) * place.length)
            self.pad_row(self.plane * self.spec.c + channel, first + row, padded, to)

    def tile(self, padded: Buffer, group: Index, y: Index, row: Index, x: Index, size: tuple[int, int]) -> None:
        """All vectors of a group of outputs, of one row."""
        _, width = size
        vectors = self.plan.knobs.vectors
        tile = RegisterTile(width * vectors, self.lanes, self.products.sum_type)
        for index in range(tile.count):
            tile[index] = self.first_sum(group * vectors + index % vectors)
        with loop(self.spec.c) as channel, loop(self.spec.kernel[0]) as ky:
            self._kernel_row(tile, padded, group, channel, ky, (row, x, width))
        self._finish(tile, group, y, x, width)

    def _kernel_row(
        self, tile: RegisterTile, padded: Buffer, group: Index, channel: Index, ky: Index, at: tuple[Index, Index, int]
    ) -> None:
        plan, lanes, products = self.plan, self.lanes, self.products
        vectors = plan.knobs.vectors
        place, (rows, columns) = plan.padded, self.spec.axes()
        row, x, width = at
        image_row = channel * place.most_rows + row * rows.stride + ky * rows.dilation
        line = bind(image_row * place.length + x * columns.stride)
        step = plan.words * vectors * lanes
        weight = bind(group * plan.group_size + (channel * rows.kernel + ky) * step)

        def multiply(word: Index) -> None:
            places = (weight + (word * vectors + vector) * lanes for vector in range(vectors))
            right = [products.right(load(self.weight, place, lanes)) for place in places]
            for position in range(width):
                column = position * columns.stride + word * plan.taps * columns.dilation
                element = tirx.reinterpret("int32", load(padded, line + column, WORD))
                left = products.prepare(T.Broadcast(element, lanes))
                for vector in range(vectors):
                    products.multiply_add(tile, position * vectors + vector, left, right[vector])

        for_each(plan.words, UNROLLED_WORDS, multiply)

    def _finish(self, tile: RegisterTile, group: Index, y: Index, x: Index, width: int) -> None:
        rows, columns = self.spec.axes()
        vectors, blocks = self.plan.knobs.vectors, -(-self.spec.o // self.lanes)
        for vector in range(vectors):
            block = group * vectors + vector

            def write(block: Index = block, vector: int = vector) -> None:
                first = ((self.plane * blocks + block) * rows.out + y) * columns.out + x
                places = [
                    VectorAt(
                        (self.plane, block * self.lanes, y, x + position),
                        1,
                        self.lanes,
                        (first + position) * self.lanes,
                    )
                    for position in range(width)
                ]
                self.out.store_run([tile[position * vectors + vector] for position in range(width)], places)

            always = self.plan.groups * vectors == blocks
            when(True if always else block < blocks, write)
