"""Convolution of a picture cut into patches in bfloat16: windows as large as the stride, as vision transformers begin.

No number of the picture is read by two windows, so a window becomes one row of a panel and the convolution is one
matrix product::

    panel[numbers of 32, window] = input[channel, y * kernel + ky, x * kernel + kx]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Index
from ..vector import amx
from ..vector.amx import TILE_DEPTH
from ..vector.bf16_panels import depth_of
from ..vector.bf16_tiles import unit_of
from ..vector.bfloat16 import BFLOAT16, BITS
from ..vector.builder import bind, constant, load, loop, store
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import pieces
from ..windows.spatial import Window
from .bf16 import UnitWriter, build_units
from .bf16_plan import Conv2dBf16Knobs, Plan, Taps, split_units
from .spec import Conv2dSpec

MOST_COPIES = 512  # of contiguous numbers of a window, which are written out


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.groups == 1 and spec.input_layout == "plain" and spec.dtype == BFLOAT16
    is_cut = spec.kernel == spec.stride and not any(spec.padding) and spec.dilation == (1, 1)
    is_small = spec.c * spec.kernel[0] * -(-spec.kernel[1] // TILE_DEPTH) <= MOST_COPIES
    return is_small and is_dense and is_cut and unit_of(target) is not None


@dataclass(frozen=True)
class _PatchPlan(Plan):
    """One axis of windows, and one tap that is all of a window."""

    @property
    def rows(self) -> Taps:
        windows = self.spec.out_h * self.spec.out_w
        return Taps.of(Window(windows, windows, 1, 1, 0, 1))

    @property
    def columns(self) -> Taps:
        return Taps.of(Window(1, 1, 1, 1, 0, 1))

    @property
    def depth(self) -> int:
        return depth_of(_window_size(self.spec))

    @property
    def is_flat(self) -> bool:
        return True


def _window_size(spec: Conv2dSpec) -> int:
    """Numbers that one window reads."""
    return spec.c * math.prod(spec.kernel)


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    return split_units(lambda knobs: _PatchPlan(spec, knobs), spec, target)


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c, kh, kw) to [output group, 32 numbers of a window, tile], zero padded."""
    check_weight_shape(weight, (spec.o, spec.c, *spec.kernel))
    plan, outputs = _PatchPlan(spec, knobs), knobs.shape.outputs
    padded = weight.new_zeros(plan.groups * outputs, plan.depth * TILE_DEPTH, dtype=torch.bfloat16)
    padded[: spec.o, : _window_size(spec)] = weight.flatten(1)
    return amx.pack_pairs(padded.reshape(plan.groups, outputs, -1).transpose(1, 2)).reshape(-1)


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; plain in, blocked out."""
    return build_units(_PatchPlan(spec, knobs), _PatchWriter, target, epilogue, "conv2d_bf16_patches")


class _PatchWriter(UnitWriter):
    """Gathers whole windows from a plain input."""

    def gather(self, n: Index, first: Index, rows: Index, row_phase: int, column_phase: int, panels: Buffer) -> None:
        """Write the windows of this unit, row by row of the kernel."""
        spec, (height, width) = self.spec, self.spec.kernel
        rest = self.plan.depth * TILE_DEPTH - _window_size(spec)
        with loop(rows) as row:
            window = bind(first + row)
            corner = bind(window // spec.out_w * (height * spec.w) + window % spec.out_w * width)
            for index, (channel, y) in enumerate(itertools.product(range(spec.c), range(height))):
                source = bind(((n * spec.c + channel) * spec.h + y) * spec.w + corner)
                for begin, lanes in _within_panels(index * width, width):
                    value = load(self.data, source + (begin - index * width), lanes)
                    store(panels, self._place(row, begin), value, lanes)
            for begin, lanes in pieces(rest, TILE_DEPTH):
                store(panels, self._place(row, _window_size(spec) + begin), constant(0, lanes, BITS), lanes)

    def _place(self, row: Index, number: int) -> Index:
        """Where a number of a window lies in the panels."""
        depth, offset = divmod(number, TILE_DEPTH)
        return (depth * self.plan.plane + row) * TILE_DEPTH + offset


def _within_panels(first: int, count: int) -> list[tuple[int, int]]:
    """Runs ``(first, lanes)`` of ``count`` numbers of a window, none of which crosses the end of a panel's row."""
    runs = []
    while count:
        part = min(count, TILE_DEPTH - first % TILE_DEPTH)
        runs += [(first + start, lanes) for start, lanes in pieces(part, TILE_DEPTH)]
        first, count = first + part, count - part
    return runs
