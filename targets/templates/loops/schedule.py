"""A formula in TVM's tensor expressions of one operand, scheduled by a fixed rule or by a trace of MetaSchedule.

The rule only shares the outermost loop among threads. A search by MetaSchedule (`tersor.targets.tuning.metaschedule`)
finds better schedules; the trace of the best one is the knob.
"""

from __future__ import annotations

import json
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import s_tir, te, tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Expr
from ..registry import Knobs
from ..vector.builder import Output, make_prim_func, split_index

ANCHOR, RESULT = "anchor", "result"  # names of the two stages; traces refer to them

Formula = tuple[te.Tensor, Callable[..., Expr]]


@dataclass(frozen=True, repr=False)
class LoopKnobs:
    """A trace of MetaSchedule as JSON text; empty for the fixed rule."""

    trace: str = ""

    def __repr__(self) -> str:
        """Short: traces are long, and profiles show knobs."""
        return f"LoopKnobs(trace {zlib.crc32(self.trace.encode()):08x})" if self.trace else "LoopKnobs()"


class LoopSpec(ABC):
    """What such a kernel computes: a frozen dataclass with these members."""

    dtype: str

    @property
    @abstractmethod
    def in_size(self) -> int:
        """Elements stored of the operand."""

    @property
    @abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result as stored."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Operations, in units that compare with multiply-adds."""

    @abstractmethod
    def formula(self, data: te.Tensor) -> Formula:
        """The stage named `ANCHOR` on the flat operand, and what ``finish(value, *indices)`` makes of its elements."""


# From schedulable blocks to loops, the form that all other templates write.
LOWER = tvm.transform.Sequential(
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


def candidates(spec: LoopSpec, target: Cpu) -> list[LoopKnobs]:
    """The fixed rule; what a search finds cannot be listed beforehand, see `accepts`."""
    return [LoopKnobs()]


def accepts(knobs: Knobs) -> bool:
    """Whether knobs that `candidates` does not list may be used."""
    return isinstance(knobs, LoopKnobs)


def build(spec: LoopSpec, target: Cpu, knobs: LoopKnobs) -> tirx.PrimFunc:
    """The scheduled PrimFunc."""
    schedule = s_tir.Schedule(definition(spec))
    if knobs.trace:
        s_tir.schedule.Trace.apply_json_to_schedule(json.loads(knobs.trace), schedule)
    else:
        for stage in (ANCHOR, RESULT):
            share_outer_loops(schedule, schedule.get_sblock(stage))
    operand = BufferSpec("x", spec.in_size, spec.dtype)
    return as_kernel("loops", schedule, [operand], BufferSpec("y", math.prod(spec.out_shape), spec.dtype))


def definition(spec: LoopSpec) -> tirx.PrimFunc:
    """The PrimFunc ``main`` before scheduling, on flat buffers: the operand and the result."""
    data = te.placeholder((spec.in_size,), spec.dtype, "x")
    shape = spec.out_shape or (1,)
    anchor, finish = spec.formula(data)

    def result(flat: Expr) -> Expr:
        indices = split_index(flat, shape)
        return finish(anchor(*indices), *indices)

    output = te.compute((math.prod(shape),), result, RESULT)
    return te.create_prim_func([data, output]).with_attr("global_symbol", "main")


def share_outer_loops(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> None:
    """All loops of a stage that are not reduced become one, whose iterations threads share."""
    axes = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    kept = [loop for loop, axis in zip(loops, axes, strict=True) if axis.iter_type == axis.DataPar]
    if kept:
        schedule.parallel(schedule.fuse(*kept) if len(kept) > 1 else kept[0])


def as_kernel(name: str, schedule: s_tir.Schedule, inputs: Sequence[BufferSpec], output: BufferSpec) -> tirx.PrimFunc:
    """The PrimFunc of a schedule whose parameters are ``inputs`` and ``output``, of any shapes, on flat buffers."""
    lowered = LOWER(schedule.mod)["main"]

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        for parameter, buffer in zip(lowered.params, (*buffers, out.buffer), strict=True):
            T.add_to_parent(tirx.DeclBuffer(parameter, data=buffer.data))  # the same memory, by the name that is used
        T.add_to_parent(lowered.body)

    return make_prim_func(name, inputs, output, body, NO_EPILOGUE)
