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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tvm import tirx

from ..record import Target
from . import amx
from .amx import TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, TILE_SIZE, SumTiles, TileShape
from .base import NO_EPILOGUE, BufferSpec, Epilogue, VectorAt
from .bfloat16 import BFLOAT16, bits_of
from .builder import bind, constant, load, loop, make_prim_func, store, store_result, when
from .conv2d_spec import Conv2dSpec
from .parallelism import chunk_loop, shared_loop
from .spatial import Window

Buffer = Any
Index = Any

HALF = TILE_DEPTH // 2  # channels of a block in memory: the upper half of a panel's row is the next block
PANEL_SHARE = 3  # panels take at most this part of L2


@dataclass(frozen=True)
class Conv2dBf16Knobs:
    """How the kernel is tiled.

    Attributes
    ----------
    rows, columns
        Tiles of positions and of outputs whose sums are in registers.
    row_units
        Pieces of each image, every one with panels of its own.
    output_units
        Pieces of the groups of outputs; all of them gather the same panels.
    """

    rows: int
    columns: int
    row_units: int = 1
    output_units: int = 1

    @property
    def shape(self) -> TileShape:
        """The tiles of sums."""
        return TileShape(self.rows, self.columns)


@dataclass(frozen=True)
class Taps:
    """One axis of the convolution in terms of phases: tap ``k`` reads phase ``phase[k]`` shifted by ``shift[k]``."""

    window: Window
    phase: tuple[int, ...]
    shift: tuple[int, ...]

    @classmethod
    def of(cls, window: Window) -> Taps:
        offsets = [tap * window.dilation for tap in range(window.kernel)]
        return cls(window, tuple(o % window.stride for o in offsets), tuple(o // window.stride for o in offsets))

    @property
    def phases(self) -> tuple[int, ...]:
        """The phases that some tap reads."""
        return tuple(sorted(set(self.phase)))

    @property
    def reach(self) -> int:
        """Positions that taps reach beyond the last output."""
        return max(self.shift)

    def valid(self, phase: int) -> tuple[int, int]:
        """First position of a phase that lies in the input, and one past the last; others are padding."""
        window, length = self.window, self.window.out + self.reach
        first = -(-(window.pad - phase) // window.stride)
        last = (window.size - 1 + window.pad - phase) // window.stride
        begin = min(max(first, 0), length)
        return begin, min(max(last + 1, begin), length)


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from a spec and its knobs."""

    spec: Conv2dSpec
    knobs: Conv2dBf16Knobs

    @property
    def rows(self) -> Taps:
        """The vertical axis."""
        return Taps.of(self.spec.windows()[0])

    @property
    def columns(self) -> Taps:
        """The horizontal axis."""
        return Taps.of(self.spec.windows()[1])

    @property
    def depth(self) -> int:
        """Panels of 32 channels."""
        return -(-self.spec.c // TILE_DEPTH)

    @property
    def groups(self) -> int:
        """Groups of outputs whose sums are in registers at once."""
        return -(-self.spec.o // self.knobs.shape.outputs)

    @property
    def row_length(self) -> int:
        """Columns of a panel."""
        return self.columns.window.out + self.columns.reach

    @property
    def unit_rows(self) -> int:
        """Most output rows of a unit."""
        return -(-self.rows.window.out // self.knobs.row_units)

    @property
    def plane(self) -> int:
        """Positions of one panel."""
        return (self.unit_rows + self.rows.reach) * self.row_length

    @property
    def panel_size(self) -> int:
        """Elements of all panels of a unit, and what the last tile reads beyond them."""
        phases = len(self.rows.phases) * len(self.columns.phases)
        return (phases * self.depth * self.plane + self.knobs.shape.positions + self.row_length) * TILE_DEPTH

    @property
    def step_size(self) -> int:
        """Packed weights of one step: 32 channels and one tap, for one group of outputs."""
        return self.knobs.columns * TILE_SIZE

    @property
    def group_size(self) -> int:
        """Packed weights of one group of outputs."""
        return self.depth * self.rows.window.kernel * self.columns.window.kernel * self.step_size

    def phase_index(self, row_phase: int, column_phase: int) -> int:
        """Which panel a pair of phases is."""
        columns = self.columns.phases
        return self.rows.phases.index(row_phase) * len(columns) + columns.index(column_phase)


def supports(spec: Conv2dSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_plain = spec.groups == 1 and spec.input_layout == "blocked" and spec.dtype == BFLOAT16
    return is_plain and amx.FEATURE in target.features and target.lanes() == TILE_COLUMNS


def candidates(spec: Conv2dSpec, target: Target) -> list[Conv2dBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    columns = 2 if spec.o > TILE_COLUMNS else 1
    found: dict[Conv2dBf16Knobs, None] = {}
    for rows, wide in ((2, columns), (1, columns), (3, 1)):
        plan = Plan(spec, Conv2dBf16Knobs(rows, wide))
        found.update(dict.fromkeys(split(plan, target, by_outputs=choice) for choice in (False, True)))
    is_small = spec.n * spec.out_h * spec.out_w <= TILE_ROWS
    is_heavy = spec.c * spec.o * spec.kernel[0] * spec.kernel[1] * 2 > target.l2_bytes // 2
    return sorted(found, key=lambda one: (one.rows != (1 if is_small else 2), (one.output_units > 1) != is_heavy))


def split(plan: Plan, target: Target, *, by_outputs: bool = False) -> Conv2dBf16Knobs:
    """Units such that panels stay in L2 and all cores have work; ``by_outputs`` shares the weights among cores."""
    height = plan.rows.window.out
    room = target.l2_bytes // PANEL_SHARE
    cut = (replace(plan, knobs=replace(plan.knobs, row_units=units)) for units in range(1, height))
    pieces = next((one.knobs.row_units for one in cut if 2 * one.panel_size <= room), height)
    if by_outputs and plan.groups >= target.cores:
        return replace(plan.knobs, row_units=pieces, output_units=target.cores)
    return replace(plan.knobs, row_units=min(height, -(-pieces // target.cores) * target.cores))


def pack_weight(spec: Conv2dSpec, target: Target, knobs: Conv2dBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c, kh, kw) to [output group, 32 channels, kh, kw, tile], zero padded."""
    expected = (spec.o, spec.c, *spec.kernel)
    if tuple(weight.shape) != expected:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {expected}")
    plan = Plan(spec, knobs)
    outputs = knobs.shape.outputs
    padded = weight.new_zeros(plan.groups * outputs, plan.depth * TILE_DEPTH, *spec.kernel, dtype=torch.bfloat16)
    padded[: spec.o, : spec.c] = weight
    split = padded.reshape(plan.groups, outputs, plan.depth, TILE_DEPTH, *spec.kernel)
    return amx.pack_pairs(split.permute(0, 2, 4, 5, 3, 1)).reshape(-1)


def build(
    spec: Conv2dSpec,
    target: Target,
    knobs: Conv2dBf16Knobs,
    epilogue: Epilogue = NO_EPILOGUE,
    name: str = "conv2d_bf16",
) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    return build_units(Plan(spec, knobs), UnitWriter, target, epilogue, name)


def build_units(plan: Plan, writer: type[UnitWriter], target: Target, epilogue: Epilogue, name: str) -> tirx.PrimFunc:
    """The PrimFunc whose units ``writer`` writes."""
    spec, knobs = plan.spec, plan.knobs
    lanes = target.lanes()
    channels = spec.input_blocks(target) * spec.input_block(target)
    inputs = (
        BufferSpec("data", spec.n * channels * spec.h * spec.w, BFLOAT16),
        BufferSpec("weight", plan.groups * plan.group_size, BFLOAT16),
    )
    output = BufferSpec("output", spec.n * spec.output_blocks(target) * spec.out_h * spec.out_w * lanes, epilogue.dtype)

    def body(main: Sequence[Buffer], extra: Sequence[Buffer], out: Buffer) -> None:
        extents = (spec.n, knobs.row_units, knobs.output_units)
        with shared_loop(extents, macs=spec.macs) as (n, row_unit, output_unit):
            writer(plan, target, epilogue, main, extra, out).write(n, row_unit, output_unit)

    return make_prim_func(name, inputs, output, body, epilogue)


class UnitWriter:
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        epilogue: Epilogue,
        main: Sequence[Buffer],
        extra: Sequence[Buffer],
        out: Buffer,
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.knobs = plan.knobs
        self.epilogue = epilogue
        self.data, self.weight = (bits_of(buffer) for buffer in main)
        self.extra = extra
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
        amx.configure()
        positions = (rows - 1) * self.plan.row_length + self.column_taps.window.out
        tiles = (positions + self.knobs.shape.positions - 1) // self.knobs.shape.positions
        with chunk_loop(output_unit, self.knobs.output_units, self.plan.groups) as group, loop(tiles) as tile:
            position = bind(tile * self.knobs.shape.positions)
            self._multiply(group, position, panels, sums)
            self._finish(n, first, rows, group, position, sums)
        amx.release()

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
        self._clear(panels, to, 0, begin)
        with loop(end, begin) as column:
            value = load(self.data, start + column * (window.stride * HALF), HALF)
            store(panels, to + column * TILE_DEPTH, value, HALF)
        self._clear(panels, to, end, self.plan.row_length)

    def _clear(self, panels: Buffer, to: Index, begin: int, end: int) -> None:
        if begin < end:
            with loop(end, begin) as column:
                store(panels, to + column * TILE_DEPTH, constant(0, HALF, "uint16"), HALF)

    # Products -------------------------------------------------------------------------------------------------

    def _multiply(self, group: Index, position: Index, panels: Buffer, sums: Buffer) -> None:
        plan = self.plan
        kernel_height, kernel_width = self.row_taps.window.kernel, self.column_taps.window.kernel
        tiles = SumTiles(self.knobs.shape)
        tiles.clear()
        with loop(plan.depth) as depth:
            weight = bind(group * plan.group_size + depth * (kernel_height * kernel_width * plan.step_size))
            panel = bind((depth * plan.plane + position) * TILE_DEPTH)
            for tap, (ky, kx) in enumerate(itertools.product(range(kernel_height), range(kernel_width))):
                phase = plan.phase_index(self.row_taps.phase[ky], self.column_taps.phase[kx])
                shift = self.row_taps.shift[ky] * plan.row_length + self.column_taps.shift[kx]
                place = panel + (phase * plan.depth * plan.plane + shift) * TILE_DEPTH
                tiles.multiply_add(panels, place, self.weight, weight + tap * plan.step_size)
        tiles.store(sums)

    def _finish(self, n: Index, first: Index, rows: Index, group: Index, position: Index, sums: Buffer) -> None:
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
                place = (y // self.spec.out_w, y % self.spec.out_w) if self.spec.pointwise else (y, x)
                at = VectorAt((n, block * TILE_COLUMNS, *place), 1, TILE_COLUMNS, flat)
                value = load(sums, index * self.knobs.shape.outputs + offset * TILE_COLUMNS, TILE_COLUMNS)
                store_result(self.out, value, at, self.epilogue, self.extra)

        belongs = row < rows
        if length > width:
            belongs = tirx.And(belongs, x < width)
        when(belongs, write)
