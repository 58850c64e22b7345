"""Convolution of the few channels of a picture in bfloat16: the taps of a row share one panel.

Three channels would fill a tenth of a tile's depth, so a row of a panel holds, for one output column, what all taps of
a kernel row read in all channels: with a 7 x 7 kernel 3 * 8 of its 32 numbers. What is left to sum over is the rows of
the kernel. ::

    panel[row, x, channel, kx] = input[channel, row, x * stride + kx - padding]

Numbers of neighbouring taps are neighbours in the input: with stride 2, the pairs that 16 columns need are 64 bytes in
a row; with stride 1 they overlap and are put together from two loads. A square of 16 pairs by 16 columns is transposed
in registers into 16 rows of the panel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Expr, Index
from ..vector import amx
from ..vector.amx import TILE_DEPTH, TILE_ROWS
from ..vector.bf16_tiles import fitting_rows, needed_unit, unit_of
from ..vector.bfloat16 import BFLOAT16, BITS
from ..vector.builder import bind, constant, load, loop, store, when
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import in_register, pieces, transpose
from ..windows.spatial import Window
from .bf16 import UnitWriter, build_units
from .bf16_plan import MOST_TAPS, PAIRS, Conv2dBf16Knobs, Plan, Taps, split
from .spec import Conv2dSpec


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.groups == 1 and spec.input_layout == "plain" and spec.dtype == BFLOAT16 and not spec.pointwise
    is_dense = is_dense and spec.kernel[0] <= MOST_TAPS
    fits = spec.stride[1] in (1, 2) and spec.dilation[1] == 1 and spec.c * _tap_pairs(spec) <= PAIRS
    return is_dense and fits and unit_of(target) is not None


def _tap_pairs(spec: Conv2dSpec) -> int:
    """Pairs of horizontal taps; the last tap of an odd number has a partner of weight zero."""
    return -(-spec.kernel[1] // 2)


@dataclass(frozen=True)
class _NarrowPlan(Plan):
    """Sizes of panels in which the horizontal taps are folded into the depth."""

    @property
    def columns(self) -> Taps:
        """One tap: output columns are panel columns."""
        out = self.spec.out_w
        return Taps.of(Window(out, out, 1, 1, 0, 1))

    @property
    def depth(self) -> int:
        """All channels and taps of a row share one panel."""
        return 1

    @property
    def pairs(self) -> int:
        return self.spec.c * _tap_pairs(self.spec)

    @property
    def row_length(self) -> int:
        """Columns of a panel, whole squares."""
        return -(-self.spec.out_w // TILE_ROWS) * TILE_ROWS

    @property
    def line(self) -> int:
        """Elements of one channel's row with its padding, and of what the last square reads beyond it."""
        stride = self.spec.stride[1]
        needed = max(stride * self.row_length, self.spec.padding[1] + self.spec.w)
        return needed + 2 * _tap_pairs(self.spec) + TILE_DEPTH


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    unit = needed_unit(target)
    columns = 2 if spec.o > amx.TILE_COLUMNS else 1
    most = fitting_rows(unit, spec.out_h * spec.out_w, columns)
    found = [Conv2dBf16Knobs(rows, columns, unit=unit) for rows in (most, max(1, most // 2))]
    return [split(_NarrowPlan(spec, knobs), target) for knobs in dict.fromkeys(found)]


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c, kh, kw) to [output group, kh, tile], flat and zero padded."""
    check_weight_shape(weight, (spec.o, spec.c, *spec.kernel))
    groups, outputs = Plan(spec, knobs).groups, knobs.shape.outputs
    height, width = spec.kernel
    pairs = weight.new_zeros(groups * outputs, height, spec.c, 2 * _tap_pairs(spec), dtype=torch.bfloat16)
    pairs[: spec.o, ..., :width] = weight.permute(0, 2, 1, 3)
    padded = pairs.new_zeros(groups * outputs, height, TILE_DEPTH)
    padded[..., : spec.c * 2 * _tap_pairs(spec)] = pairs.flatten(2)
    return amx.pack_pairs(padded.reshape(groups, outputs, height, TILE_DEPTH).permute(0, 2, 3, 1)).reshape(-1)


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; plain in, blocked out."""
    return build_units(_NarrowPlan(spec, knobs), _NarrowWriter, target, epilogue, "conv2d_bf16_narrow")


class _NarrowWriter(UnitWriter):
    """Gathers panels from a plain input."""

    plan: _NarrowPlan

    def gather(self, n: Index, first: Index, rows: Index, row_phase: int, column_phase: int, panels: Buffer) -> None:
        """Write one phase of the rows that this unit reads."""
        plan, window = self.plan, self.row_taps.window
        phase = plan.phase_index(row_phase, column_phase)
        lines = amx.panels(self.spec.c * plan.line)
        with loop(self.spec.c * plan.line) as index:
            store(lines, index, constant(0, 1, BITS), 1)
        with loop(rows + self.row_taps.reach) as row:
            image_row = bind((first + row) * window.stride + (row_phase - window.pad))
            to = bind((phase * plan.plane + row * plan.row_length) * TILE_DEPTH)
            when(
                self.is_inside(image_row, row_phase),
                lambda: self._fill_row(n, image_row, lines, panels, to),
                lambda: self._clear_row(panels, to),
            )

    def _clear_row(self, panels: Buffer, to: Index) -> None:
        with loop(self.plan.row_length) as column:
            store(panels, to + column * TILE_DEPTH, constant(0, TILE_DEPTH, BITS), TILE_DEPTH)

    def _fill_row(self, n: Index, image_row: Index, lines: Buffer, panels: Buffer, to: Index) -> None:
        spec, plan = self.spec, self.plan
        for channel in range(spec.c):
            source = bind(((n * spec.c + channel) * spec.h + image_row) * spec.w)
            self._copy(source, lines, channel * plan.line + spec.padding[1])
        with loop(plan.row_length // TILE_ROWS) as square:
            column = bind(square * TILE_ROWS)
            words = [
                in_register(self._pairs(lines, channel * plan.line + 2 * pair, column))
                for channel in range(spec.c)
                for pair in range(_tap_pairs(spec))
            ]
            words += [constant(0, TILE_ROWS, "uint32")] * (PAIRS - len(words))
            for position, word in enumerate(transpose(words)):
                at = to + (column + position) * TILE_DEPTH
                store(panels, at, tirx.reinterpret(f"{BITS}x{TILE_DEPTH}", word), TILE_DEPTH)

    def _copy(self, source: Index, lines: Buffer, to: int) -> None:
        """One row of one channel to the middle of its line."""
        whole, rest = divmod(self.spec.w, TILE_DEPTH)
        if whole:
            with loop(whole) as step:
                value = load(self.data, source + step * TILE_DEPTH, TILE_DEPTH)
                store(lines, to + step * TILE_DEPTH, value, TILE_DEPTH)
        for start, lanes in pieces(rest, TILE_DEPTH):
            at = whole * TILE_DEPTH + start
            store(lines, to + at, load(self.data, source + at, lanes), lanes)

    def _pairs(self, lines: Buffer, line: int, column: Index) -> Expr:
        """Two neighbouring taps for 16 columns, the first in the lower halves of 16 words."""
        words = f"uint32x{TILE_ROWS}"
        if self.spec.stride[1] == 2:
            return tirx.reinterpret(words, load(lines, line + column * 2, TILE_DEPTH))
        low = tirx.Cast(words, load(lines, line + column, TILE_ROWS))
        high = tirx.Cast(words, load(lines, line + column + 1, TILE_ROWS))
        return low | (high << constant(16, TILE_ROWS, "uint32"))
