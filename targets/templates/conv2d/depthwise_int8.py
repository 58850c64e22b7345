"""Depthwise convolution of integers in blocked layout: four neighbouring taps of each channel make one dot product.

    for plane, piece of its rows in parallel:
        padded = the input rows that the piece reads, and their padding
        for row, column tile, kernel row, four taps:
            tile[column] += transposed(padded[column * stride ... + 3]) . weight[four taps]

Neighbouring columns of a block lie one behind the other: what four taps read is one load, and a shuffle brings the four
numbers of each channel together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from . import depthwise
from .depthwise import DepthwiseKnobs
from .spec import Conv2dSpec

PADDED_SHARE = 2  # the padded rows of a piece take at most this part of L1
MOST_UNROLLED = 4  # words of weights for which all kernel rows are written out
MOST_COLUMNS = 8  # of a tile: enough to hide the latency of the products


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype)


@dataclass(frozen=True)
class _Plan:
    """Sizes that follow from a spec and its knobs."""

    spec: Conv2dSpec
    knobs: DepthwiseKnobs
    lanes: int

    @property
    def blocks(self) -> int:
        """Channel blocks."""
        return -(-self.spec.c // self.lanes)

    @property
    def quads(self) -> int:
        """Groups of four horizontal taps."""
        return -(-self.spec.kernel[1] // WORD)

    @property
    def padded(self) -> PaddedRows:
        """The padded rows of a piece."""
        reach = (self.quads * WORD - 1) * self.spec.dilation[1] + 1
        return PaddedRows(*self.spec.axes(), self.knobs.pieces, reach)

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
        return self.spec.kernel[0] * self.quads * self.lanes


def candidates(spec: Conv2dSpec, target: Cpu) -> list[DepthwiseKnobs]:
    """Feasible knobs, the best analytic guess first: pieces whose padded rows stay in L1."""
    least = depthwise.candidates(replace(spec, dtype="float32", zero_point=0), target)[0].pieces
    room = target.l1_bytes // PADDED_SHARE
    found = []
    for columns in (MOST_COLUMNS, MOST_COLUMNS // 2):
        plans = (_Plan(spec, DepthwiseKnobs(columns, count), target.lanes()) for count in range(least, spec.out_h))
        count = next((plan.knobs.pieces for plan in plans if plan.padded_bytes <= room), max(least, spec.out_h))
        found.append(DepthwiseKnobs(min(columns, spec.out_w), count))
    return list(dict.fromkeys(found))


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight of shape (c, 1, kh, kw) to [channel block, kh, word, lane, tap]; the table follows."""
    check_weight_shape(weight, (spec.c, 1, *spec.kernel))
    plan = _Plan(spec, knobs, target.lanes())
    padded = weight.new_zeros(plan.blocks * plan.lanes, spec.kernel[0], plan.quads * WORD)
    padded[: spec.c, :, : spec.kernel[1]] = weight[:, 0]
    parts = padded.reshape(plan.blocks, plan.lanes, spec.kernel[0], plan.quads, WORD)
    packed = parts.permute(0, 2, 3, 1, 4).reshape(-1)
    zero = spec.zero_point + layer_product(target, spec).offset
    return append_table(packed, uniform_table(weight, zero, plan.blocks * plan.lanes)) if zero else packed


def build(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
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

    def tile(self, padded: Buffer, group: Index, y: Index, row: Index, x: Index, width: int) -> None:
        """The one vector of each output."""
        plan, lanes, products = self.plan, self.lanes, self.products
        rows, columns = plan.spec.axes()
        tile = RegisterTile(width, lanes, products.sum_type)
        for position in range(width):
            tile[position] = self.first_sum(self.block)
        weight = bind(self.block * plan.weight_block)

        def kernel_row(ky: Index) -> None:
            line = (row * rows.stride + ky * rows.dilation) * plan.padded.length + x * columns.stride

            def multiply(quad: Index) -> None:
                factors = products.right(load(self.weight, weight + (ky * plan.quads + quad) * lanes, lanes))
                for position in range(width):
                    column = position * columns.stride + quad * WORD * columns.dilation
                    words = products.prepare(self._words(padded, line + column))
                    products.multiply_add(tile, position, words, factors)

            for_each(plan.quads, UNROLLED_WORDS, multiply)

        if rows.kernel * plan.quads <= MOST_UNROLLED:  # then LLVM keeps the weights in registers from tile to tile
            for ky in range(rows.kernel):
                kernel_row(ky)
        else:
            with loop(rows.kernel) as ky:
                kernel_row(ky)
        image, channel = self.plane // plan.blocks, self.block * lanes
        for position in range(width):
            flat = ((self.plane * rows.out + y) * columns.out + x + position) * lanes
            at = VectorAt((image, channel, y, x + position), 1, lanes, flat)
            self.out.store(tile[position], at)

    def _words(self, padded: Buffer, column: Index) -> Expr:
        """What four taps read from a column on, the four bytes of each channel side by side."""
        lanes, dilation = self.lanes, self.plan.spec.dilation[1]
        order = [tap * lanes + lane for lane in range(lanes) for tap in range(WORD)]
        if dilation == 1:
            vectors = [load(padded, column * lanes, WORD * lanes)]
        else:
            vectors = [load(padded, (column + tap * dilation) * lanes, lanes) for tap in range(WORD)]
        return tirx.reinterpret(f"int32x{lanes}", shuffle(vectors, order))
