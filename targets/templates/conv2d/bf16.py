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

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..registry import Knobs
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH
from ..vector.amx_pipeline import Pending, Tile, TileWriter
from ..vector.bf16_tiles import unit_of
from ..vector.bfloat16 import BFLOAT16, BITS, bits_of
from ..vector.builder import Output, bind, constant, load, loop, make_prim_func, store, when
from ..vector.operand_types import check_weight_shape
from .bf16_plan import MOST_TAPS, Conv2dBf16Knobs, Plan, split_units
from .spec import Conv2dSpec

HALF = TILE_DEPTH // 2  # channels of a block in memory: the upper half of a panel's row is the next block


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_small = math.prod(spec.kernel) <= MOST_TAPS
    return is_small and spec.dtype == BFLOAT16 and spec.input_layout == "blocked" and unit_of(target) == "amx"


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    return split_units(lambda knobs: Plan(spec, knobs), spec, target)


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kh, kw) to [output group, 32 channels, kh, kw, tile], zero padded.

    With convolution groups, a group of outputs has only the panels of 32 channels that it reads.
    """
    return amx.pack_pairs(reduced_tiles(Plan(spec, knobs), weight.to(torch.bfloat16), TILE_DEPTH)).reshape(-1)


def reduced_tiles(plan: Plan[Knobs], weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A weight as [output group, panel, kh, kw, ``channels`` of the panel, outputs of the group], zero padded."""
    spec, width = plan.spec, plan.knobs.shape.outputs
    inputs, outputs = spec.c // spec.groups, spec.o // spec.groups
    check_weight_shape(weight, (spec.o, inputs, *spec.kernel))
    dense = weight.new_zeros(plan.groups * width, plan.depth * channels, *spec.kernel)
    for group, part in enumerate(weight.split(outputs)):
        dense[group * outputs : (group + 1) * outputs, group * inputs : (group + 1) * inputs] = part
    panels = dense.reshape(plan.groups, width, plan.depth, channels, *spec.kernel)
    firsts = [plan.first_panel(group) for group in range(plan.groups)]
    tiled = torch.stack([part[:, first : first + plan.span] for part, first in zip(panels, firsts, strict=True)])
    return tiled.permute(0, 2, 4, 5, 3, 1)


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    return build_units(Plan(spec, knobs), UnitWriter, target, epilogue, "conv2d_bf16")


def build_units(
    plan: Plan[Knobs], writer: type[UnitWriter], target: Cpu, epilogue: Epilogue, name: str
) -> tirx.PrimFunc:
    """The PrimFunc whose units ``writer`` writes."""
    spec, knobs = plan.spec, plan.knobs
    inputs = (BufferSpec("data", spec.input_size(target), spec.dtype), plan.weight_buffer)
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        data, packed = main
        weights = writer.weights(plan, packed)
        extents = (spec.n, knobs.row_units, knobs.output_units)
        with shared_loop(extents, macs=spec.macs) as (n, row_unit, output_unit):
            writer(plan, target, data, weights, out).write(n, row_unit, output_unit)

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + knobs.shape.llvm_ir)
    return make_prim_func(name, inputs, output, body, importing)


class UnitWriter(TileWriter):
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self, plan: Plan[Knobs], target: Cpu, data: Buffer, weights: tuple[Buffer, Buffer | None], out: Output
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.knobs = plan.knobs
        self.shape = plan.knobs.shape
        self.out = out
        self.input_blocks = plan.spec.input_blocks(target)
        self.output_blocks = plan.spec.output_blocks(target)
        self.row_taps, self.column_taps = plan.rows, plan.columns
        self.data = self.numbers(data)
        self.weight, self.table = weights

    @staticmethod
    def weights(plan: Plan[Knobs], packed: Buffer) -> tuple[Buffer, Buffer | None]:
        """The packed weights as the unit reads them, and what sums start from unless it is zero."""
        return bits_of(packed), None

    def numbers(self, data: Buffer) -> Buffer:
        """The input as it is copied to panels."""
        return bits_of(data)

    def write(self, n: Index, row_unit: Index, output_unit: Index) -> None:
        """Gather panels, then all tiles of the groups of outputs."""
        plan, units = self.plan, self.knobs.row_units
        height = self.row_taps.window.out
        first = bind(row_unit * height // units)
        rows = bind((row_unit + 1) * height // units - first)
        panels = amx.panels(plan.panel_size)
        sums = self.allocate_sums()
        for row_phase, column_phase in itertools.product(self.row_taps.phases, self.column_taps.phases):
            self.gather(n, first, rows, row_phase, column_phase, panels)
        self.shape.begin()
        step = self.shape.positions
        self.write_tiles(
            (output_unit, self.knobs.output_units, plan.groups),
            ((rows - 1) * plan.row_length + self.column_taps.window.out + step - 1) // step,
            rows * plan.row_length,
            sums,
            lambda tile, pending: self.multiply(tile, panels, pending),
            lambda tile, *piece: self.finish(n, first, rows, tile, piece),
        )
        self.shape.end()

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

    def is_inside(self, image_row: Index, row_phase: int) -> Expr | bool:
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

    def multiply(self, tile: Tile, panels: Buffer, pending: Pending | None) -> None:
        """Write the sums of one tile; with each step goes a share of what is pending."""
        plan = self.plan
        taps = list(itertools.product(range(self.row_taps.window.kernel), range(self.column_taps.window.kernel)))
        tiles = self.shape.tiles(plan.pairs)
        self.start(tiles, tile.group)
        first = bind(plan.first_panel(tile.group))
        with loop(plan.span) as depth:
            weight = bind(tile.group * plan.group_size + depth * (len(taps) * plan.step_size))
            panel = bind(((first + depth) * plan.plane + tile.position) * TILE_DEPTH)
            for tap, (ky, kx) in enumerate(taps):
                phase = plan.phase_index(self.row_taps.phase[ky], self.column_taps.phase[kx])
                shift = self.row_taps.shift[ky] * plan.row_length + self.column_taps.shift[kx]
                at = panel + (phase * plan.depth * plan.plane + shift) * TILE_DEPTH
                tiles.multiply_add(panels, at, self.weight, weight + tap * plan.step_size)
                if pending is not None:
                    pending.after_step(depth, tap, len(taps), plan.span)
        tiles.store(tile.sums, tile.place)

    def finish(self, n: Index, first: Index, rows: Index, tile: Tile, piece: tuple[()] | tuple[Index, int]) -> None:
        """Apply the epilogue to the sums that belong to an output, and store them.

        ``piece`` is the first of some positions and their number, which may reach beyond the tile; empty for all.
        """
        columns, positions = self.knobs.columns, self.shape.positions
        rest = self.output_blocks % columns
        begin, count = piece or (0, positions)

        def of_blocks(blocks: int) -> None:
            with loop(count) as offset:
                index = bind(begin + offset) if piece else begin + offset
                self._store_position(n, first, rows, tile, blocks, index, not piece)

        is_last = tile.group == self.plan.groups - 1 if self.plan.groups > 1 else True
        when(is_last if rest else False, lambda: of_blocks(rest), lambda: of_blocks(columns))

    def _store_position(
        self, n: Index, first: Index, rows: Index, tile: Tile, blocks: int, index: Index, is_inside: bool
    ) -> None:
        """All outputs of one position."""
        height, width, length = self.row_taps.window.out, self.column_taps.window.out, self.plan.row_length
        position = tile.position + index if is_inside else bind(tile.position + index)
        row = bind(position // length) if length > 1 else position
        x = bind(position % length) if length > 1 else 0

        def write() -> None:
            y = first + row
            for offset in range(blocks):
                block = tile.group * self.knobs.columns + offset
                flat = (((n * self.output_blocks + block) * height + y) * width + x) * TILE_COLUMNS
                place = (y // self.spec.out_w, y % self.spec.out_w) if self.plan.is_flat else (y, x)
                at = VectorAt((n, block * TILE_COLUMNS, *place), 1, TILE_COLUMNS, flat)
                source = tile.place + index * self.shape.outputs + offset * TILE_COLUMNS
                self.out.store(load(tile.sums, source, TILE_COLUMNS), at)

        belongs = row < rows if is_inside else tirx.And(index < self.shape.positions, row < rows)
        when(belongs if length == width else tirx.And(belongs, x < width), write)
