"""Transposed convolution as ordinary ones: each phase of the result is a direct convolution with some of the taps.

    out[o, y, x] = sum over c, i, j of  w[o, c, i, j] * in[c, (y + p - i) / s, (x + p - j) / s]

where only taps count that make whole numbers of the quotients. The results with one remainder of y and one of x by the
stride, a *phase*, use every s-th tap, and are a convolution of stride 1 with those taps in reverse order. A phase's
results are written where they belong, every s-th position apart: in channel blocks a position is a whole vector, so
that this costs nothing. Phases whose windows lie alike (2 x 2 kinds for the usual kernels) share one piece of code.

Sub-pixel phases are due to Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional
from tvm import tirx

from ....ir.ops.integers import WEIGHT_BITS
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import Output, make_prim_func, split_index
from ..vector.operand_types import check_operands, check_weight_shape
from . import spec as conv2d_spec
from . import tiling
from .direct import ConvolutionWriter, Image
from .space import candidates as conv2d_candidates
from .spec import Conv2dKnobs, Conv2dSpec, output_groups


@dataclass(frozen=True)
class TransposedSpec:
    """One transposed convolution; sizes in elements, pairs are (height, width).

    Attributes
    ----------
    n, c, h, w
        Input batch, channels, height and width.
    o
        Output channels.
    out
        Height and width of the result.
    padding
        Rows and columns cut off before the result.
    dilation
        1 along an axis whose stride is not 1.
    groups, input_layout, dtype, zero_point, weight_bits
        As in `Conv2dSpec`.
    """

    n: int
    c: int
    h: int
    w: int
    o: int
    out: tuple[int, int]
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_layout: Literal["blocked", "plain"] = "blocked"
    dtype: str = "float32"
    zero_point: int = 0
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        positive = (self.n, self.c, self.h, self.w, self.o, self.groups, *self.out)
        if min(*positive, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"sizes must be positive and padding not negative: {self}")
        if any(stride > 1 and step > 1 for stride, step in zip(self.stride, self.dilation, strict=True)):
            raise ValueError(f"an axis has a stride or a dilation, not both: {self}")
        if self.c % self.groups or self.o % self.groups:
            raise ValueError(f"groups={self.groups} must divide c={self.c} and o={self.o}")
        check_operands(self.dtype, self.zero_point, self.weight_bits)

    @property
    def macs(self) -> int:
        """Multiply-adds: each input with all of its weights."""
        return self.n * self.c * self.h * self.w * (self.o // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def out_h(self) -> int:
        """Output height."""
        return self.out[0]

    @property
    def out_w(self) -> int:
        """Output width."""
        return self.out[1]

    @property
    def in_size(self) -> int:
        """Elements of the operand."""
        return self.n * self.c * self.h * self.w


@dataclass(frozen=True)
class PhaseSpec(Conv2dSpec):
    """``phases`` phases with windows alike, as one convolution; negative padding leaves out what it reaches."""

    phases: int = 1

    def __post_init__(self) -> None:
        """The transposed convolution has been checked."""

    @property
    def images(self) -> int:
        """Planes of results in each channel."""
        return self.n * self.phases

    @property
    def pointwise(self) -> bool:
        """Rows stay apart, since results are written apart."""
        return False


@dataclass(frozen=True)
class PhaseRun:
    """``count`` neighbouring phases of one axis, from ``first`` on: ``out`` results of ``taps`` taps each.

    Attributes
    ----------
    first_tap
        The first tap of phase ``first``; that of the next phase is the next one.
    pad
        Positions before the input that the first result of these phases reads; negative if it starts within.
    """

    first: int
    count: int
    first_tap: int
    taps: int
    pad: int
    out: int


def phase_runs(spec: TransposedSpec, axis: int) -> list[PhaseRun]:
    """The phases of one axis (0 for height), neighbours that are alike together."""
    stride, dilation, pad, out = spec.stride[axis], spec.dilation[axis], spec.padding[axis], spec.out[axis]
    kernel = max(spec.kernel[axis], stride)  # taps of zero, so that every phase has one
    runs: list[PhaseRun] = []
    for phase in range(min(stride, out)):
        first_tap = (phase + pad) % stride
        taps = -(-(kernel - first_tap) // stride)
        before = (taps - 1) * dilation - (phase + pad) // stride
        one = PhaseRun(phase, 1, first_tap, taps, before, -(-(out - phase) // stride))
        last = runs[-1] if runs else None
        if last and (last.taps, last.pad, last.out, last.first_tap + last.count) == (taps, before, one.out, first_tap):
            runs[-1] = PhaseRun(last.first, last.count + 1, last.first_tap, taps, before, one.out)
        else:
            runs.append(one)
    return runs


@dataclass(frozen=True)
class Phases:
    """Phases of both axes that share one piece of code."""

    rows: PhaseRun
    columns: PhaseRun
    spec: PhaseSpec

    def weight_size(self, target: Cpu, knobs: Conv2dKnobs) -> int:
        """Packed weights of one phase."""
        rows = sum(g.count * g.vectors * g.span for g in output_groups(self.spec, target, knobs.vectors))
        return rows * self.spec.taps * self.spec.input_block(target) * target.lanes()

    def taps(self) -> Iterator[tuple[int, int]]:
        """The first tap of each phase, in the order of their weights."""
        rows, columns = (range(run.first_tap, run.first_tap + run.count) for run in (self.rows, self.columns))
        return itertools.product(rows, columns)


@lru_cache(maxsize=1024)
def all_phases(spec: TransposedSpec) -> tuple[Phases, ...]:
    """The whole result."""
    pairs = itertools.product(phase_runs(spec, 0), phase_runs(spec, 1))
    return tuple(Phases(rows, columns, _phase_spec(spec, rows, columns)) for rows, columns in pairs)


def _phase_spec(spec: TransposedSpec, rows: PhaseRun, columns: PhaseRun) -> PhaseSpec:
    after = [
        run.out + (run.taps - 1) * spec.dilation[axis] - run.pad - (spec.h, spec.w)[axis]
        for axis, run in enumerate((rows, columns))
    ]
    return PhaseSpec(
        spec.n,
        spec.c,
        spec.h,
        spec.w,
        spec.o,
        (rows.taps, columns.taps),
        padding=(rows.pad, columns.pad, after[0], after[1]),
        dilation=spec.dilation,
        groups=spec.groups,
        input_layout=spec.input_layout,
        dtype=spec.dtype,
        zero_point=spec.zero_point,
        phases=rows.count * columns.count,
    )


def candidates(spec: TransposedSpec, target: Cpu) -> list[Conv2dKnobs]:
    """Feasible knobs, the best analytic guess first: those of the phases with the most work, ranked for all phases."""
    every = [phases.spec for phases in all_phases(spec)]
    found = conv2d_candidates(max(every, key=lambda phase: phase.macs), target)

    @lru_cache
    def rank(tile: Conv2dKnobs) -> float:
        cycles = sum(
            tiling.estimate_cycles(phase, target, tile) * tiling.imbalance(phase, target, tile) for phase in every
        )
        return cycles * (1 + tiling.CODE_PENALTY * sum(tiling.code_size(phase, target, tile) for phase in every))

    return sorted(found, key=lambda knobs: rank(Conv2dKnobs(knobs.vectors, knobs.rows, knobs.columns)))


def pack_weight(spec: TransposedSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kh, kw) phase by phase; flat."""
    parts = phase_taps(spec, weight)
    return torch.cat([conv2d_spec.pack_weight(phases.spec, target, knobs, taps) for phases, taps in parts])


def phase_taps(spec: TransposedSpec, weight: torch.Tensor) -> Iterator[tuple[Phases, torch.Tensor]]:
    """The weight of each phase's convolution, (o, c / groups, taps, taps), in the order in which they are packed."""
    check_weight_shape(weight, (spec.o, spec.c // spec.groups, *spec.kernel))
    height, width = (max(stride - kernel, 0) for stride, kernel in zip(spec.stride, spec.kernel, strict=True))
    weight = functional.pad(weight, (0, width, 0, height))
    for phases in all_phases(spec):
        for row, column in phases.taps():
            yield phases, weight[:, :, row :: spec.stride[0], column :: spec.stride[1]].flip(2, 3)


def build(spec: TransposedSpec, target: Cpu, knobs: Conv2dKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; the output is blocked."""
    every = all_phases(spec)
    weights = sum(phases.weight_size(target, knobs) * phases.spec.phases for phases in every)
    inputs = (
        BufferSpec("data", every[0].spec.input_size(target), spec.dtype),
        BufferSpec("weight", weights, spec.dtype),
    )
    positions = spec.n * spec.out[0] * spec.out[1]
    output = BufferSpec("output", positions * every[0].spec.output_blocks(target) * target.lanes(), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        first_weight = 0
        for phases in every:
            writer = PhaseWriter(phases.spec, target, knobs, main[0], main[1], out)
            writer.place(spec, phases, first_weight)
            writer.write()
            first_weight += phases.weight_size(target, knobs) * phases.spec.phases

    return make_prim_func("conv2d_transposed", inputs, output, body, epilogue)


class PhaseImage(Image):
    """One phase of one image."""

    conv: PhaseWriter

    def __init__(self, conv: PhaseWriter, index: Index) -> None:
        self.phases, self.whole = conv.phases, conv.whole
        rows, columns = self.phases.rows, self.phases.columns
        self.row, self.column, n = split_index(index, (rows.count, columns.count, self.whole.n))
        phase = self.row * columns.count + self.column
        self.first_weight = conv.first_weight + phase * conv.phase_weights
        self.first_sums = conv.first_sums + phase * conv.phase_sums
        self.columns_adjoin = self.whole.stride[1] == 1
        super().__init__(conv, n)

    def at(self, block: Index, y: Index, x: Index) -> VectorAt:
        (down, right), (height, width) = self.whole.stride, self.whole.out
        y = y * down + self.phases.rows.first + self.row
        x = x * right + self.phases.columns.first + self.column
        lanes = self.conv.lanes
        flat = (((self.n * self.conv.output_blocks + block) * height + y) * width + x) * lanes
        return VectorAt((self.n, block * lanes, y, x), 1, lanes, flat)


class PhaseWriter(ConvolutionWriter):
    """Writes phases that are alike."""

    image = PhaseImage
    whole: TransposedSpec
    phases: Phases
    first_weight: int
    first_sums = 0
    phase_sums = 0

    def write(self) -> None:
        """Phases of one stretch of rows follow one another, so that their results fill it while it is in cache."""
        total = sum(run.count for run in self.groups)
        count = self.phases.spec.phases
        extents = (self.whole.n, total, self.units, count)
        if self.knobs.order == "rows":
            extents = (self.whole.n, self.units, total, count)
        with shared_loop(extents, macs=self.spec.macs) as (n, outer, inner, phase):
            group, unit = (outer, inner) if self.knobs.order == "weights" else (inner, outer)
            self._dispatch_group(phase * self.whole.n + n, group, unit)

    def place(self, whole: TransposedSpec, phases: Phases, first_weight: int) -> None:
        """Say which phases of what these are, and where their weights begin."""
        self.whole, self.phases, self.first_weight = whole, phases, first_weight
        self.phase_weights = phases.weight_size(self.target, self.knobs) // self.arithmetic.packing


__all__ = ["Conv2dKnobs", "TransposedSpec", "all_phases", "build", "candidates", "pack_weight"]
