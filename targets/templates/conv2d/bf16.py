"""Convolution in bfloat16 on a matrix unit: panels of 32 channels are gathered, then every tap is a matrix product.

    for unit in parallel(image, piece of the rows, piece of the outputs):
        panel[phase, channels of 32, row, column] = input, zero where it is padding
        for group of outputs, tile of positions:
            sums = 0
            for channels of 32, kh, kw:
                sums += panel[positions shifted by kh, kw] @ weight[kh, kw]
            output = epilogue(sums)

Rows of a panel are as long as output rows plus what the taps reach beyond them, so that a tap is a shift of the
flattened panel: a tile of 16 positions may run over the end of a row, and the few sums that belong to no output are
dropped. A stride of 2 puts even and odd rows and columns into panels of their own (phases), in which the convolution
has stride 1. A pointwise convolution is the case of one column.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tvm import tirx

from ...machines.target import Target
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt
from ..parallelism import chunk_loop, shared_loop
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH
from ..vector.bf16_tiles import unit_of
from ..vector.bfloat16 import BFLOAT16, BITS, bits_of
from ..vector.builder import Output, bind, constant, load, loop, make_prim_func, store, when
from ..vector.operand_types import check_weight_shape
from .bf16_plan import MOST_TAPS, Conv2dBf16Knobs, Plan, split, split_units
from .spec import Conv2dSpec

__all__ = [
    "Conv2dBf16Knobs",
    "Plan",
    "UnitWriter",
    "build",
    "build_units",
    "candidates",
    "pack_weight",
    "split",
    "supports",
]


HALF = TILE_DEPTH // 2  # channels of a block in memory: the upper half of a panel's row is the next block


def supports(spec: Conv2dSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_small = math.prod(spec.kernel) <= MOST_TAPS
    return is_small and spec.dtype == BFLOAT16 and spec.input_layout == "blocked" and unit_of(target) == "amx"


def candidates(spec: Conv2dSpec, target: Target) -> list[Conv2dBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    return split_units(lambda knobs: Plan(spec, knobs), spec, target)


def pack_weight(spec: Conv2dSpec, target: Target, knobs: Conv2dBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kh, kw) to [output group, 32 channels, kh, kw, tile], zero padded.

    With convolution groups, a group of outputs has only the panels of 32 channels that it reads.
    """
    inputs, outputs = spec.c // spec.groups, spec.o // spec.groups
    check_weight_shape(weight, (spec.o, inputs, *spec.kernel))
    plan = Plan(spec, knobs)
    width = knobs.shape.outputs
    dense = weight.new_zeros(plan.groups * width, plan.depth * TILE_DEPTH, *spec.kernel, dtype=torch.bfloat16)
    for group, part in enumerate(weight.split(outputs)):
        dense[group * outputs : (group + 1) * outputs, group * inputs : (group + 1) * inputs] = part
    firsts = [plan.first_panel(group) * TILE_DEPTH for group in range(plan.groups)]
    read = [
        part[:, first : first + plan.span * TILE_DEPTH] for part, first in zip(dense.split(width), firsts, strict=True)
    ]
    tiled = torch.stack(read).reshape(plan.groups, width, plan.span, TILE_DEPTH, *spec.kernel)
    return amx.pack_pairs(tiled.permute(0, 2, 4, 5, 3, 1)).reshape(-1)


def build(spec: Conv2dSpec, target: Target, knobs: Conv2dBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    return build_units(Plan(spec, knobs), UnitWriter, target, epilogue, "conv2d_bf16")


def build_units(plan: Plan, writer: type[UnitWriter], target: Target, epilogue: Epilogue, name: str) -> tirx.PrimFunc:
    """The PrimFunc whose units ``writer`` writes."""
    spec, knobs = plan.spec, plan.knobs
    inputs = (
        BufferSpec("data", spec.input_size(target), BFLOAT16),
        BufferSpec("weight", plan.groups * plan.group_size, BFLOAT16),
    )
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        extents = (spec.n, knobs.row_units, knobs.output_units)
        with shared_loop(extents, macs=spec.macs) as (n, row_unit, output_unit):
            writer(plan, target, main, out).write(n, row_unit, output_unit)

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + knobs.shape.llvm_ir)
    return make_prim_func(name, inputs, output, body, importing)


class UnitWriter:
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        main: Sequence[Buffer],
        out: Output,
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.knobs = plan.knobs
        self.data, self.weight = (bits_of(buffer) for buffer in main)
        self.out = out
        self.input_blocks = plan.spec.input_blocks(target)
        self.output_blocks = plan.spec.output_blocks(target)
        self.row_taps, self.column_taps = plan.rows, plan.columns

    def write(self, n: Index, row_unit: Index, output_unit: Index) -> None:
        height, units = self.row_taps.window.out, self.knobs.row_units
        first = 0 if units == 1 else bind(row_unit * height // units)
        rows = height if units == 1 else bind((row_unit + 1) * height // units - first)
        panels = amx.panels(self.plan.panel_size)
        sums = amx.sums_buffer(self.knobs.shape)
        for row_phase, column_phase in itertools.product(self.row_taps.phases, self.column_taps.phases):
            self.gather(n, first, rows, row_phase, column_phase, panels)
        self.knobs.shape.begin()
        positions = (rows - 1) * self.plan.row_length + self.column_taps.window.out
        tiles = (positions + self.knobs.shape.positions - 1) // self.knobs.shape.positions
        with chunk_loop(output_unit, self.knobs.output_units, self.plan.groups) as group, loop(tiles) as tile:
            position = bind(tile * self.knobs.shape.positions)
            self._multiply(group, position, panels, sums)
            self.finish(n, first, rows, group, position, sums)
        self.knobs.shape.end()

    # Panels ---------------------------------------------------------------------------------------------------

    def gather(self, n: Index, first: Index, rows: Index, row_phase: int, column_phase: int, panels: Buffer) -> None:
        """Copy one phase of the rows that this unit reads; two blocks of 16 channels make one row of 32."""
        plan, window = self.plan, self.row_taps.window
        phase = plan.phase_index(row_phase, column_phase) * plan.depth
        with loop(2 * plan.depth) as block, loop(rows + self.row_taps.reach) as row:
            image_row = bind((first + row) * window.stride + (row_phase - window.pad))
            panel_row = (phase + block // 2) * plan.plane + row * plan.row_length
            to = bind(panel_row * TILE_DEPTH + block % 2 * HALF)
            exists = self.is_inside(image_row, row_phase)
            if self.input_blocks % 2:
                exists = tirx.And(block < self.input_blocks, exists)
            when(
                exists,
                lambda: self._copy_row(n, block, image_row, column_phase, panels, to),
                lambda: self._clear(panels, to, 0, plan.row_length),
            )

    def is_inside(self, image_row: Index, row_phase: int) -> Any:
        """Whether a row lies in the image; True where all of a phase do."""
        begin, end = self.row_taps.valid(row_phase)
        window = self.row_taps.window
        if begin == 0 and end == window.out + self.row_taps.reach:
            return True
        return tirx.And(image_row >= 0, image_row < window.size)

    def _copy_row(self, n: Index, block: Index, image_row: Index, column_phase: int, panels: Buffer, to: Index) -> None:
        window = self.column_taps.window
        begin, end = self.column_taps.valid(column_phase)
        start = ((n * self.input_blocks + block) * self.row_taps.window.size + image_row) * window.size
        start = bind((start + column_phase - window.pad) * HALF)

        def copy(channels: int) -> None:
            exists = tirx.Ramp(0, 1, HALF) < constant(channels, HALF, "int32")
            with loop(end, begin) as column:
                value = load(self.data, start + column * (window.stride * HALF), HALF)
                if channels < HALF:
                    value = tirx.Select(exists, value, constant(0, HALF, BITS))
                store(panels, to + column * TILE_DEPTH, value, HALF)

        # Lanes of channels that do not exist may hold infinity or NaN, which a weight of zero does not remove.
        rest = self.spec.c % HALF
        self._clear(panels, to, 0, begin)
        when(block == self.input_blocks - 1 if rest else False, lambda: copy(rest), lambda: copy(HALF))
        self._clear(panels, to, end, self.plan.row_length)

    def _clear(self, panels: Buffer, to: Index, begin: int, end: int) -> None:
        if begin < end:
            with loop(end, begin) as column:
                store(panels, to + column * TILE_DEPTH, constant(0, HALF, BITS), HALF)

    # Products -------------------------------------------------------------------------------------------------

    def _multiply(self, group: Index, position: Index, panels: Buffer, sums: Buffer) -> None:
        plan = self.plan
        kernel_height, kernel_width = self.row_taps.window.kernel, self.column_taps.window.kernel
        tiles = self.knobs.shape.tiles(plan.pairs)
        self.start(tiles, group)
        first = bind(plan.first_panel(group))
        with loop(plan.span) as depth:
            weight = bind(group * plan.group_size + depth * (kernel_height * kernel_width * plan.step_size))
            panel = bind(((first + depth) * plan.plane + position) * TILE_DEPTH)
            for tap, (ky, kx) in enumerate(itertools.product(range(kernel_height), range(kernel_width))):
                phase = plan.phase_index(self.row_taps.phase[ky], self.column_taps.phase[kx])
                shift = self.row_taps.shift[ky] * plan.row_length + self.column_taps.shift[kx]
                place = panel + (phase * plan.depth * plan.plane + shift) * TILE_DEPTH
                tiles.multiply_add(panels, place, self.weight, weight + tap * plan.step_size)
        tiles.store(sums)

    def start(self, tiles: Any, group: Index) -> None:
        """Set the sums of one group of outputs to what they start from."""
        tiles.clear()

    def finish(self, n: Index, first: Index, rows: Index, group: Index, position: Index, sums: Buffer) -> None:
        """Apply the epilogue to the sums that belong to an output, and store them."""
        columns = self.knobs.columns
        rest = self.output_blocks % columns

        def of_blocks(count: int) -> None:
            with loop(self.knobs.shape.positions) as index:
                self._store_position(n, first, rows, group * columns, count, position + index, index, sums)

        is_last = group == self.plan.groups - 1 if self.plan.groups > 1 else True
        when(is_last if rest else False, lambda: of_blocks(rest), lambda: of_blocks(columns))

    def _store_position(
        self,
        n: Index,
        first: Index,
        rows: Index,
        first_block: Index,
        blocks: int,
        position: Index,
        index: Index,
        sums: Buffer,
    ) -> None:
        height, width = self.row_taps.window.out, self.column_taps.window.out
        length = self.plan.row_length
        row = bind(position // length) if length > 1 else position
        x = bind(position % length) if length > 1 else 0

        def write() -> None:
            y = first + row
            for offset in range(blocks):
                block = first_block + offset
                flat = (((n * self.output_blocks + block) * height + y) * width + x) * TILE_COLUMNS
                place = (y // self.spec.out_w, y % self.spec.out_w) if self.plan.is_flat else (y, x)
                at = VectorAt((n, block * TILE_COLUMNS, *place), 1, TILE_COLUMNS, flat)
                value = load(sums, index * self.knobs.shape.outputs + offset * TILE_COLUMNS, TILE_COLUMNS)
                self.out.store(value, at)

        belongs = row < rows
        if length > width:
            belongs = tirx.And(belongs, x < width)
        when(belongs, write)
