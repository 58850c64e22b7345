"""Kernels without a template of their own: the formula in TVM's tensor expressions, scheduled by a fixed rule.

The rule only shares the outermost loop among threads. A search by MetaSchedule (`tersor.targets.tuning.metaschedule`)
finds better schedules; the trace of the best one is the knob.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, te, tirx
from tvm.tirx.script.builder import ir as T

from ..machines.target import Cpu
from .base import NO_EPILOGUE, Buffer, BufferSpec, Expr, row_major_strides
from .vector.builder import Output, make_prim_func, split_index

ANCHOR, RESULT = "anchor", "result"  # names of the two stages; traces refer to them

INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


@dataclass(frozen=True, repr=False)
class LoopKnobs:
    """A trace of MetaSchedule as JSON text; empty for the fixed rule."""

    trace: str = ""

    def __repr__(self) -> str:
        """Short: traces are long, and profiles show knobs."""
        return f"LoopKnobs(trace {zlib.crc32(self.trace.encode()):08x})" if self.trace else "LoopKnobs()"


@dataclass(frozen=True)
class AdaptivePoolSpec:
    """Averages over windows of unequal sizes: ``rows`` by ``columns`` results for each plane of ``h`` by ``w``.

    Window ``i`` of ``n`` reaches from ``floor(i * extent / n)`` to ``ceil((i + 1) * extent / n)``. Channels are stored
    in blocks of ``block``.
    """

    n: int
    c: int
    h: int
    w: int
    rows: int
    columns: int
    block: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.n, self.c, self.h, self.w, self.rows, self.columns, self.block) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        if self.dtype != "float32":
            raise ValueError(f"dtype must be float32, not {self.dtype!r}")

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.c // self.block)

    @property
    def in_size(self) -> int:
        """Elements stored of the operand."""
        return self.n * self.blocks * self.h * self.w * self.block

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return (self.n, self.blocks, self.rows, self.columns, self.block)

    @property
    def macs(self) -> int:
        """Additions, the largest window's for each result."""
        taps = _largest_window(self.h, self.rows) * _largest_window(self.w, self.columns)
        return math.prod(self.out_shape) * taps


@dataclass(frozen=True)
class IntegerReduceSpec:
    """``kind`` (``"sum"``, ``"max"`` or ``"min"``) of a row-major tensor of integers over ``axes``."""

    kind: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.kind not in ("sum", "max", "min"):
            raise ValueError(f"kind must be sum, max or min, not {self.kind!r}")
        if self.dtype not in INTEGERS:
            raise ValueError(f"dtype must be one of {', '.join(INTEGERS)}, not {self.dtype!r}")
        if not self.axes or any(not 0 <= axis < len(self.shape) for axis in self.axes):
            raise ValueError(f"axes {self.axes} are not axes of a tensor of shape {self.shape}")

    @property
    def in_size(self) -> int:
        """Elements of the operand."""
        return math.prod(self.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The kept axes."""
        return tuple(extent for axis, extent in enumerate(self.shape) if axis not in self.axes)

    @property
    def macs(self) -> int:
        """Additions or comparisons."""
        return self.in_size


# From schedulable blocks to loops, the form that all other templates write.
_LOWER = tvm.transform.Sequential(
    [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
)

LoopSpec = AdaptivePoolSpec | IntegerReduceSpec


def candidates(spec: LoopSpec, target: Cpu) -> list[LoopKnobs]:
    """The fixed rule; what a search finds cannot be listed beforehand, see `accepts`."""
    return [LoopKnobs()]


def accepts(knobs: Any) -> bool:
    """Whether knobs that `candidates` does not list may be used."""
    return isinstance(knobs, LoopKnobs)


def build(spec: LoopSpec, target: Cpu, knobs: LoopKnobs) -> Any:
    """The scheduled PrimFunc."""
    schedule = s_tir.Schedule(definition(spec))
    if knobs.trace:
        s_tir.schedule.Trace.apply_json_to_schedule(json.loads(knobs.trace), schedule)
    else:
        _share_outer_loops(schedule)
    lowered = _LOWER(schedule.mod)["main"]

    def body(inputs: Sequence[Buffer], output: Output) -> None:
        for parameter, buffer in zip(lowered.params, (*inputs, output.buffer), strict=True):
            T.add_to_parent(tirx.DeclBuffer(parameter, data=buffer.data))  # the same memory, by the name that is used
        T.add_to_parent(lowered.body)

    operand = BufferSpec("x", spec.in_size, spec.dtype)
    result = BufferSpec("y", math.prod(spec.out_shape), spec.dtype)
    return make_prim_func("loops", [operand], result, body, NO_EPILOGUE)


def definition(spec: LoopSpec) -> Any:
    """The PrimFunc ``main`` before scheduling, on flat buffers: the operand and the result."""
    data = te.placeholder((spec.in_size,), spec.dtype, "x")
    shape = spec.out_shape or (1,)
    anchor, finish = _FORMULAS[type(spec)](spec, data)

    def result(flat: Expr) -> Expr:
        indices = split_index(flat, shape)
        return finish(anchor(*indices), *indices)

    output = te.compute((math.prod(shape),), result, RESULT)
    return te.create_prim_func([data, output]).with_attr("global_symbol", "main")


Formula = tuple[Any, Callable[..., Expr]]


def _adaptive_average(spec: AdaptivePoolSpec, data: Any) -> Formula:
    tall = te.reduce_axis((0, _largest_window(spec.h, spec.rows)), "kh")
    wide = te.reduce_axis((0, _largest_window(spec.w, spec.columns)), "kw")

    def total(batch: Expr, block: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
        first, behind = _window(row, spec.h, spec.rows)
        left, beside = _window(column, spec.w, spec.columns)
        y, x = first + tall, left + wide
        inside = tirx.all(y < behind, x < beside)
        plane = (batch * spec.blocks + block) * spec.h + tirx.min(y, spec.h - 1)
        offset = (plane * spec.w + tirx.min(x, spec.w - 1)) * spec.block + lane
        return te.sum(tirx.Select(inside, data[offset], tirx.const(0, spec.dtype)), [tall, wide])

    def mean(value: Expr, batch: Expr, block: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
        first, behind = _window(row, spec.h, spec.rows)
        left, beside = _window(column, spec.w, spec.columns)
        return value / tirx.Cast(spec.dtype, (behind - first) * (beside - left))

    return te.compute(spec.out_shape, total, ANCHOR), mean


def _integer_reduction(spec: IntegerReduceSpec, data: Any) -> Formula:
    reduced = {axis: te.reduce_axis((0, spec.shape[axis]), f"k{axis}") for axis in spec.axes}
    strides = row_major_strides(spec.shape)
    combine = {"sum": te.sum, "max": te.max, "min": te.min}[spec.kind]

    def total(*kept: Expr) -> Expr:
        rest = iter(kept)
        indices = [reduced[axis] if axis in reduced else next(rest) for axis in range(len(spec.shape))]
        offset = sum((index * stride for index, stride in zip(indices, strides, strict=True)), start=tirx.const(0))
        return combine(data[offset], list(reduced.values()))

    return te.compute(spec.out_shape or (1,), total if spec.out_shape else lambda _: total(), ANCHOR), _unchanged


def _unchanged(value: Expr, *indices: Expr) -> Expr:
    return value


_FORMULAS: dict[type, Callable[[Any, Any], Formula]] = {
    AdaptivePoolSpec: _adaptive_average,
    IntegerReduceSpec: _integer_reduction,
}


def _window(index: Expr, extent: int, count: int) -> tuple[Expr, Expr]:
    """Where a window begins, and the first element behind it."""
    return index * extent // count, ((index + 1) * extent + count - 1) // count


def _largest_window(extent: int, count: int) -> int:
    return max(-(-(i + 1) * extent // count) - i * extent // count for i in range(count))


def _share_outer_loops(schedule: Any) -> None:
    """Both stages: all loops that are not reduced become one, whose iterations threads share."""
    for stage in (ANCHOR, RESULT):
        block = schedule.get_sblock(stage)
        loops = schedule.get_loops(block)
        kept = [
            loop
            for loop, axis in zip(loops, schedule.get(block).iter_vars, strict=True)
            if axis.iter_type == axis.DataPar
        ]
        schedule.parallel(schedule.fuse(*kept) if len(kept) > 1 else kept[0])
