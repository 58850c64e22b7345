"""Sizes of a convolution in bfloat16 on panels: phases of the taps, panels, groups of outputs, and units of work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tvm import tirx

from ...machines.target import Cpu
from ..base import BufferSpec, Index
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE
from ..vector.bf16_tiles import PanelKnobs, fitting_rows, needed_unit
from ..vector.bfloat16 import BFLOAT16
from ..windows.spatial import Window
from .spec import Conv2dSpec

PAIRS = TILE_DEPTH // 2  # in a row of a panel
MOST_TAPS = 128  # that templates on panels write out; other templates loop over those of larger kernels
PANEL_SHARE = 3  # panels take at most this part of L2


@dataclass(frozen=True)
class Conv2dBf16Knobs(PanelKnobs):
    """How the kernel is tiled, with each image cut into ``row_units``; see the base class."""


KnobsT = TypeVar("KnobsT", bound=Conv2dBf16Knobs)


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
class Plan(Generic[KnobsT]):
    """Sizes that follow from a spec and its knobs."""

    spec: Conv2dSpec
    knobs: KnobsT

    @property
    def rows(self) -> Taps:
        """The vertical axis."""
        return Taps.of(self.spec.windows()[0])

    @property
    def columns(self) -> Taps:
        """The horizontal axis."""
        return Taps.of(self.spec.windows()[1])

    @property
    def is_flat(self) -> bool:
        """Whether output positions are numbered through height and width in one."""
        return self.spec.pointwise

    @property
    def pairs(self) -> int:
        """Pairs of numbers of a panel's row that may be other than zero."""
        return PAIRS

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
        return self.span * self.rows.window.kernel * self.columns.window.kernel * self.step_size

    @property
    def weight_buffer(self) -> BufferSpec:
        """The packed weights."""
        return BufferSpec("weight", self.groups * self.group_size, BFLOAT16)

    @property
    def span(self) -> int:
        """Panels that a group of outputs reads; with convolution groups, those that hold channels of its own."""
        if self.spec.groups == 1:
            return self.depth
        return max(self._end(group) - self._first(group) for group in range(self.groups))

    def first_panel(self, group: Index) -> Index:
        """The first of the `span` panels that a group of outputs reads."""
        if self.span == self.depth:
            return 0
        smaller = min if isinstance(group, int) else tirx.min
        return smaller(self._first(group), self.depth - self.span)

    def _first(self, group: Index) -> Index:
        """The panel with the first channel that a group of outputs reads."""
        inputs, outputs = self.spec.c // self.spec.groups, self.spec.o // self.spec.groups
        return group * self.knobs.shape.outputs // outputs * inputs // TILE_DEPTH

    def _end(self, group: int) -> int:
        """One past the panel with the last channel."""
        inputs, outputs = self.spec.c // self.spec.groups, self.spec.o // self.spec.groups
        last = min((group + 1) * self.knobs.shape.outputs, self.spec.o) - 1
        return -(-(last // outputs + 1) * inputs // TILE_DEPTH)

    def phase_index(self, row_phase: int, column_phase: int) -> int:
        """Which panel a pair of phases is."""
        columns = self.columns.phases
        return self.rows.phases.index(row_phase) * len(columns) + columns.index(column_phase)


def split_units(plan_of: Callable[[Conv2dBf16Knobs], Plan], spec: Conv2dSpec, target: Cpu) -> list[Conv2dBf16Knobs]:
    """Knobs with several tiles of sums, and with units cut both ways, the best guess first."""
    unit = needed_unit(target)
    columns = 2 if spec.o > TILE_COLUMNS else 1
    best = fitting_rows(unit, spec.out_h * spec.out_w, columns)
    shapes = ((2, columns), (1, columns), (3, 1)) if unit == "amx" else ((best, columns), (-(-best // 2), columns))
    found: dict[Conv2dBf16Knobs, None] = {}
    for rows, wide in shapes:
        plan = plan_of(Conv2dBf16Knobs(rows, wide, unit=unit))
        found.update(dict.fromkeys(split(plan, target, by_outputs=choice) for choice in (False, True)))
    is_heavy = 2 * spec.c * spec.o * math.prod(spec.kernel) > target.l2_bytes // 2
    return sorted(found, key=lambda one: (one.rows != best, (one.output_units > 1) != is_heavy))


def split(plan: Plan[KnobsT], target: Cpu, *, by_outputs: bool = False) -> KnobsT:
    """Units such that panels stay in L2 and all cores have work; ``by_outputs`` shares the weights among cores."""
    height = plan.rows.window.out
    room = target.l2_bytes // PANEL_SHARE
    cut = (replace(plan, knobs=replace(plan.knobs, row_units=units)) for units in range(1, height))
    pieces = next((one.knobs.row_units for one in cut if 2 * one.panel_size <= room), height)
    if by_outputs and plan.groups >= target.cores:
        return replace(plan.knobs, row_units=pieces, output_units=target.cores)
    return replace(plan.knobs, row_units=min(height, -(-pieces // target.cores) * target.cores))
