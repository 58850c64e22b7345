"""Convolution of integers on a matrix unit: that of bfloat16 with panels of 64 channels and sums in int32.

A row of a panel holds 64 bytes, as there, which are four blocks of channels in memory. Padding is filled with the zero
point, so that one compensation for each output corrects all positions: the sums start from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, TileShape
from ..vector.builder import bind, constant, load, loop, store, when
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.operand_types import is_integer
from .bf16 import UnitWriter, build_units, reduced_tiles
from .bf16_plan import MOST_TAPS, Conv2dBf16Knobs, Plan, split
from .spec import Conv2dSpec

BLOCKS = 4  # of 16 channels in a row of a panel
BLOCK = TILE_DEPTH // BLOCKS  # elements of a panel (two bytes) that one block takes
CHANNELS = BLOCKS * TILE_COLUMNS


@dataclass(frozen=True)
class Conv2dInt8AmxKnobs(Conv2dBf16Knobs):
    """How the kernel is tiled; see the base class."""

    signed: bool = False

    @property
    def shape(self) -> TileShape:
        """The tiles of sums."""
        kind = amx.SignedTileShape if self.signed else amx.UnsignedTileShape
        return kind(self.rows, self.columns)


@dataclass(frozen=True)
class IntegerPlan(Plan[Conv2dInt8AmxKnobs]):
    """Sizes in pairs of bytes, which makes them those of bfloat16 but for the channels in a row."""

    @property
    def depth(self) -> int:
        """Panels of 64 channels."""
        return -(-self.spec.c // CHANNELS)

    @property
    def weight_bytes(self) -> int:
        """Packed weights."""
        return 2 * self.groups * self.group_size

    @property
    def weight_buffer(self) -> BufferSpec:
        """The packed weights, and the table behind them."""
        return BufferSpec("weight", packed_bytes(self.weight_bytes, self.table_size), "int8")

    @property
    def table_size(self) -> int:
        """Compensations, one for each output of the groups; none are needed where zero is zero."""
        return self.groups * self.knobs.shape.outputs if self.spec.zero_point else 0


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_plain = spec.groups == 1 and spec.input_layout == "blocked" and is_integer(spec.dtype)
    is_small = math.prod(spec.kernel) <= MOST_TAPS
    return is_plain and is_small and amx.INTEGER_FEATURE in target.features and target.lanes() == TILE_COLUMNS


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dInt8AmxKnobs]:
    """Feasible knobs, the best analytic guess first."""
    signed = spec.dtype == "int8"
    columns = 2 if spec.o > TILE_COLUMNS else 1
    found: dict[Conv2dInt8AmxKnobs, None] = {}
    for rows, wide in ((2, columns), (1, columns), (3, 1)):
        plan = IntegerPlan(spec, Conv2dInt8AmxKnobs(rows, wide, signed=signed))
        found.update(dict.fromkeys(split(plan, target, by_outputs=choice) for choice in (False, True)))
    is_short = spec.c <= CHANNELS and spec.kernel == (1, 1)
    is_small = spec.n * spec.out_h * spec.out_w <= TILE_ROWS
    is_heavy = spec.c * spec.o * spec.kernel[0] * spec.kernel[1] > target.l2_bytes // 2
    return sorted(
        found, key=lambda one: (one.rows != (1 if is_small or is_short else 2), (one.output_units > 1) != is_heavy)
    )


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8AmxKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight of shape (o, c, kh, kw) to [output group, 64 channels, kh, kw, tile], zero padded.

    What corrects the zero point is appended.
    """
    plan = IntegerPlan(spec, knobs)
    return packed_tiles(plan, reduced_tiles(plan, weight, CHANNELS), weight)


def packed_tiles(plan: IntegerPlan, parts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Tiles of [..., reduced, outputs] as the unit reads them; what corrects the zero point is appended."""
    packed = amx.pack_quads(parts).reshape(-1)
    if not plan.table_size:
        return packed
    return append_table(packed, uniform_table(weight, plan.spec.zero_point, plan.table_size))


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8AmxKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    return build_units(IntegerPlan(spec, knobs), IntegerWriter, target, epilogue, "conv2d_int8_amx")


class IntegerWriter(UnitWriter):
    """Gathers panels of 64 channels; the epilogue of each tile runs while the matrix unit works on the next one."""

    plan: IntegerPlan
    is_pipelined = True

    @staticmethod
    def weights(plan: IntegerPlan, packed: Buffer) -> tuple[Buffer, Buffer | None]:
        """The packed weights in pairs of bytes, and the table of compensations."""
        words = view_as(packed, "uint16", plan.weight_bytes // 2)
        return words, view_table(packed, plan.weight_bytes, plan.table_size) if plan.table_size else None

    def numbers(self, data: Buffer) -> Buffer:
        """The bytes of the input."""
        return view_as(data, "uint8", int(data.shape[0]))

    def gather(self, n: Index, first: Index, rows: Index, row_phase: int, column_phase: int, panels: Buffer) -> None:
        """Copy one phase of the rows that this unit reads; channels that do not exist stay what they are."""
        whole, rest = divmod(self.input_blocks, BLOCKS)
        window, phase = self.row_taps.window, self.plan.phase_index(row_phase, column_phase) * self.plan.depth

        def copy(depth: Index, blocks: int) -> None:
            with loop(rows + self.row_taps.reach) as row:
                image_row = bind((first + row) * window.stride + (row_phase - window.pad))
                to = bind(((phase + depth) * self.plan.plane + row * self.plan.row_length) * TILE_DEPTH)
                when(
                    self.is_inside(image_row, row_phase),
                    lambda: self._copy_blocks(n, depth * BLOCKS, blocks, image_row, column_phase, panels, to),
                    lambda: self._fill(panels, to, blocks, 0, self.plan.row_length),
                )

        if whole:
            with loop(whole) as depth:
                copy(depth, BLOCKS)
        if rest:
            copy(whole, rest)

    def _copy_blocks(
        self, n: Index, block: Index, blocks: int, image_row: Index, column_phase: int, panels: Buffer, to: Index
    ) -> None:
        """One row of the image, so many blocks of it side by side."""
        window = self.column_taps.window
        begin, end = self.column_taps.valid(column_phase)
        plane = self.row_taps.window.size * window.size * TILE_COLUMNS
        start = (n * self.input_blocks + block) * plane + image_row * (window.size * TILE_COLUMNS)
        start = bind(start + (column_phase - window.pad) * TILE_COLUMNS)
        self._fill(panels, to, blocks, 0, begin)
        with loop(end, begin) as column:
            for index in range(blocks):
                value = load(self.data, start + index * plane + column * (window.stride * TILE_COLUMNS), TILE_COLUMNS)
                place = to + column * TILE_DEPTH + index * BLOCK
                store(panels, place, tirx.reinterpret(f"uint16x{BLOCK}", value), BLOCK)
        self._fill(panels, to, blocks, end, self.plan.row_length)

    def _fill(self, panels: Buffer, to: Index, blocks: int, begin: int, end: int) -> None:
        """Padding: bytes that hold the zero point."""
        pair = (self.spec.zero_point & 0xFF) * 0x0101
        if begin < end:
            with loop(end, begin) as column:
                store(panels, to + column * TILE_DEPTH, constant(pair, blocks * BLOCK, "uint16"), blocks * BLOCK)
