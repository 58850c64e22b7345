"""Convolution of the few channels of a picture in integers on a matrix unit: the taps of an output are read in place.

Channels lie side by side, up to four in a word, and so do the words of some neighbouring rows of the input. A record is
what one column of these rows holds. The 64 bytes from the record of an output's first tap on then are what its taps
read, in as many rows of the kernel as fit, and what weights of zero make nothing of::

    records[row, column, kernel row, channel] = input[channel, row * stride + kernel row, column - padding]

Rows of a tile need not lie 64 bytes apart: those of neighbouring outputs are a stride of records apart and overlap, so
that no tap is copied. A 7 x 7 kernel takes four products for each tile, two of its rows at a time, a 3 x 3 kernel one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Expr, Index
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH
from ..vector.amx_pipeline import Pending, Tile
from ..vector.builder import bind, constant, load, loop, store
from ..vector.dot_product import WORD
from ..vector.operand_types import check_weight_shape, is_integer
from ..vector.vectors import in_register, shuffle
from ..windows.padded_rows import RowCopier
from ..windows.spatial import Window
from .bf16 import build_units
from .bf16_plan import MOST_TAPS, Taps, split
from .int8_amx import Conv2dInt8AmxKnobs, IntegerPlan, IntegerWriter, packed_tiles
from .spec import Conv2dSpec

LANES = 16  # words in a vector, and in a row of a tile
HALVES = 2  # elements of a panel, two bytes each, in a word


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.groups == 1 and spec.input_layout == "plain" and is_integer(spec.dtype) and not spec.pointwise
    fits = spec.c <= WORD and kernel_rows(spec) > 0 and spec.kernel[0] <= MOST_TAPS
    return is_dense and fits and amx.INTEGER_FEATURE in target.features and target.lanes() == TILE_COLUMNS


def kernel_rows(spec: Conv2dSpec) -> int:
    """Rows of the kernel that one product takes; 0 if there is no such number.

    Their taps fit a row of a tile, and outputs of neighbouring rows find records that start at the same input rows,
    unless one product takes all rows.
    """
    span = (spec.kernel[1] - 1) * spec.dilation[1] + 1
    height, most = spec.kernel[0], LANES // span
    if most >= height:
        return height
    return next((rows for rows in range(most, 0, -1) if rows * spec.dilation[0] % spec.stride[0] == 0), 0)


@dataclass(frozen=True)
class _NarrowPlan(IntegerPlan):
    """Sizes of records; positions are those of outputs, and the ones behind each row whose records its taps read."""

    @property
    def rows(self) -> Taps:
        """One tap: all that an output row reads starts in one row of records."""
        spec = self.spec
        return Taps.of(Window(spec.h, spec.out_h, 1, spec.stride[0], spec.padding[0], 1))

    @property
    def columns(self) -> Taps:
        """One tap: output columns are columns of positions."""
        out = self.spec.out_w
        return Taps.of(Window(out, out, 1, 1, 0, 1))

    @property
    def kernel_rows(self) -> int:
        """Words of a record."""
        return kernel_rows(self.spec)

    @property
    def steps(self) -> int:
        """Products for each tile."""
        return -(-self.spec.kernel[0] // self.kernel_rows)

    @property
    def step_rows(self) -> int:
        """How many rows of records the next product's are behind those of the one before."""
        return self.kernel_rows * self.spec.dilation[0] // self.spec.stride[0] if self.steps > 1 else 0

    @property
    def reach(self) -> int:
        """Rows of records beyond those of the last output row."""
        return (self.steps - 1) * self.step_rows

    @property
    def position_size(self) -> int:
        """Elements of a panel from one output to the next."""
        return self.spec.stride[1] * self.kernel_rows * HALVES

    @property
    def row_length(self) -> int:
        """Positions of a row."""
        stride, span = self.spec.stride[1], (self.spec.kernel[1] - 1) * self.spec.dilation[1] + 1
        return -(-((self.spec.out_w - 1) * stride + span) // stride)

    @property
    def vectors(self) -> int:
        """Vectors of columns of a row; what the last one has too many is overwritten by the next row."""
        return -(-self.row_length * self.spec.stride[1] // LANES)

    @property
    def line(self) -> int:
        """Bytes of one channel's row with its padding."""
        return max(self.vectors * LANES, self.spec.padding[1] + self.spec.w)

    @property
    def plane(self) -> int:
        """Positions of all rows."""
        return (self.unit_rows + self.reach) * self.row_length

    @property
    def panel_size(self) -> int:
        """Elements of all records of a unit, and what the last tile reads and the last row writes beyond them."""
        beyond = TILE_DEPTH + LANES * self.kernel_rows * HALVES
        return (self.plane + self.knobs.shape.positions) * self.position_size + beyond

    @property
    def group_size(self) -> int:
        """Packed weights of one group of outputs."""
        return self.steps * self.step_size


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dInt8AmxKnobs]:
    """Feasible knobs, the best analytic guess first."""
    columns = 2 if spec.o > TILE_COLUMNS else 1
    signed = spec.dtype == "int8"
    found = [Conv2dInt8AmxKnobs(rows, columns, signed=signed) for rows in (1, 2)]
    return [split(_NarrowPlan(spec, knobs), target) for knobs in found]


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8AmxKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight of shape (o, c, kh, kw) to [output group, step, tile], zero padded; the table follows."""
    check_weight_shape(weight, (spec.o, spec.c, *spec.kernel))
    plan = _NarrowPlan(spec, knobs)
    (height, width), dilation, rows = spec.kernel, spec.dilation[1], plan.kernel_rows
    outputs = plan.groups * knobs.shape.outputs
    padded = weight.new_zeros(outputs, WORD, plan.steps * rows, LANES // rows)
    padded[: spec.o, : spec.c, :height, : (width - 1) * dilation + 1 : dilation] = weight
    records = padded.reshape(outputs, WORD, plan.steps, rows, -1).permute(0, 2, 4, 3, 1).flatten(2)
    rows_of_tiles = weight.new_zeros(outputs, plan.steps, LANES * WORD)
    rows_of_tiles[..., : records.shape[2]] = records
    parts = rows_of_tiles.reshape(plan.groups, -1, plan.steps, LANES * WORD)
    return packed_tiles(plan, parts.permute(0, 2, 3, 1), weight)


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dInt8AmxKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; plain in, blocked out."""
    return build_units(_NarrowPlan(spec, knobs), _NarrowWriter, target, epilogue, "conv2d_int8_amx_narrow")


class _NarrowWriter(IntegerWriter):
    """Puts records together from a plain input."""

    plan: _NarrowPlan

    def gather(self, n: Index, first: Index, rows: Index, row_phase: int, column_phase: int, panels: Buffer) -> None:
        """Write the records of the rows that this unit reads."""
        spec, plan = self.spec, self.plan
        lines = T.alloc_buffer((plan.kernel_rows * spec.c * plan.line,), "uint8", scope="global", align=64)
        with loop(rows + plan.reach) as row:
            top = bind((first + row) * spec.stride[0] - spec.padding[0])
            for index in range(plan.kernel_rows):
                for channel in range(spec.c):
                    place = (index * spec.c + channel) * plan.line
                    self._copy_line(n, channel, bind(top + index * spec.dilation[0]), lines, place)
            to = bind(row * (plan.row_length * plan.position_size))
            with loop(plan.vectors) as vector:
                words = [self._words(lines, index, vector * LANES) for index in range(plan.kernel_rows)]
                order = [index * LANES + column for column in range(LANES) for index in range(plan.kernel_rows)]
                size = len(order) * HALVES
                records = tirx.reinterpret(f"uint16x{size}", shuffle(words, order))
                store(panels, to + vector * size, records, size)

    def _copy_line(self, n: Index, channel: int, image_row: Index, lines: Buffer, to: int) -> None:
        spec, plan = self.spec, self.plan
        source = bind(((n * spec.c + channel) * spec.h + image_row) * spec.w)
        exists = tirx.And(image_row >= 0, image_row < spec.h)
        copier = RowCopier(spec.zero_point, LANES * WORD)
        copier.copy(self.data, source, spec.w, spec.padding[1], plan.line, lines, to, exists)

    def _words(self, lines: Buffer, index: int, column: Index) -> Expr:
        """The channels of 16 columns, in one word for each column."""
        first = index * self.spec.c
        words = constant(0, LANES, "uint32")
        for channel in range(self.spec.c):
            value = load(lines, (first + channel) * self.plan.line + column, LANES)
            words = words | (tirx.Cast(f"uint32x{LANES}", value) << constant(8 * channel, LANES, "uint32"))
        return in_register(words)

    def multiply(self, tile: Tile, panels: Buffer, pending: Pending | None) -> None:
        """Write the sums of one tile."""
        plan = self.plan
        tiles = self.shape.tiles()
        self.start(tiles, tile.group)
        weight = bind(tile.group * plan.group_size)
        for step in range(plan.steps):
            at = (tile.position + step * plan.step_rows * plan.row_length) * plan.position_size
            tiles.multiply_add(panels, at, self.weight, weight + step * plan.step_size, plan.position_size)
            if pending is not None:
                pending.after_step(0, step, plan.steps, 1)
        tiles.store(tile.sums, tile.place)
