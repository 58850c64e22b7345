"""Sum, mean, product, maximum, minimum or largest magnitude over a set of axes of a plain row-major tensor.

Neighbouring axes that are both reduced or both kept are merged first. If the last one is kept, a vector of results is
accumulated down the reduced axes; if it is reduced, each result gathers whole vectors along it and folds their lanes
at the end.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.accumulation import Accumulation
from ..vector.bfloat16 import check_numbers
from ..vector.builder import Output, RegisterTile, constant, load, make_prim_func, when
from ..vector.integers import accumulator, mean, widened
from ..vector.operand_types import is_integer
from ..vector.vectors import combine_all, horizontal, lanes_of, maximum, minimum
from .row_vectors import RowKnobs, RowVectors, flat_row, row_candidates

MAGNITUDE = "magnitude"
COMBINE = {
    "sum": operator.add,
    "mean": operator.add,
    "prod": operator.mul,
    "max": maximum,
    "min": minimum,
    MAGNITUDE: maximum,
}
NEUTRAL = {"sum": 0, "mean": 0, "prod": 1, "max": float("-inf"), "min": float("inf"), MAGNITUDE: 0}


@dataclass(frozen=True)
class ReduceSpec:
    """``kind`` (a key of `COMBINE`) of a tensor of ``shape`` over ``axes``.

    Axes count from 0. The result has the kept axes in their order; with or without axes of extent 1 its flat buffer is
    the same. Of 8-bit integers there is the mean only, as float32.
    """

    kind: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in COMBINE:
            raise ValueError(f"kind must be one of {', '.join(COMBINE)}, not {self.kind!r}")
        if any(extent < 1 for extent in self.shape):
            raise ValueError(f"every extent must be positive: {self.shape}")
        if not self.axes or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes must be named, each once: {self.axes}")
        if any(not 0 <= axis < len(self.shape) for axis in self.axes):
            raise ValueError(f"axes {self.axes} are not all axes of a tensor of shape {self.shape}")
        if self.dtype != "float64" and (self.kind != "mean" or not is_integer(self.dtype)):
            check_numbers(self.dtype)

    @property
    def in_size(self) -> int:
        """Elements of the operand."""
        return math.prod(self.shape)

    @property
    def out_size(self) -> int:
        """Elements of the result."""
        return math.prod(extent for axis, extent in enumerate(self.shape) if axis not in self.axes)

    @property
    def macs(self) -> int:
        """Multiply-adds: one for each element of the operand."""
        return self.in_size

    def merged(self) -> tuple[tuple[int, bool], ...]:
        """``(extent, is reduced)`` with neighbours of a kind merged and extents of 1 dropped."""
        groups: list[tuple[int, bool]] = []
        for axis, extent in enumerate(self.shape):
            reduced = axis in self.axes
            if extent == 1:
                continue
            if groups and groups[-1][1] == reduced:
                groups[-1] = (groups[-1][0] * extent, reduced)
            else:
                groups.append((extent, reduced))
        return tuple(groups) or ((1, True),)


def candidates(spec: ReduceSpec, target: Cpu) -> list[RowKnobs]:
    """Feasible knobs, best analytic guess first."""
    return row_candidates(spec.merged()[-1][0], target.lanes(), 4, 8, 2, 1)


def build(spec: ReduceSpec, target: Cpu, knobs: RowKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, *epilogue buffers, out)``.

    The epilogue sees ``coords == (flat index in the result,)``.
    """

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        def write(flat: Index, value: Expr) -> None:
            if spec.kind == "mean":
                value = mean(value, constant(spec.out_size / spec.in_size, lanes_of(value), _mean_type(spec)))
            out.store(value, VectorAt((flat,), 0, lanes_of(value), flat))

        _Nest(spec, _lanes(spec, target), knobs.unroll, buffers[0], write).write()

    inputs = (BufferSpec("x", spec.in_size, spec.dtype),)
    return make_prim_func("reduce", inputs, BufferSpec("out", spec.out_size, epilogue.dtype), body, epilogue)


def _lanes(spec: ReduceSpec, target: Cpu) -> int:
    return target.lanes(8 if spec.dtype == "float64" else 4)


def _mean_type(spec: ReduceSpec) -> str:
    return "float64" if spec.dtype == "float64" else "float32"


class _Nest:
    """The loops of one reduction; the groups of axes are those of :meth:`ReduceSpec.merged`."""

    def __init__(
        self, spec: ReduceSpec, lanes: int, unroll: int, x: Buffer, write: Callable[[Index, Expr], None]
    ) -> None:
        groups = spec.merged()
        strides = [math.prod(extent for extent, _ in groups[index + 1 :]) for index in range(len(groups))]
        axes = [(extent, stride, reduced) for (extent, reduced), stride in zip(groups, strides, strict=True)]
        *outer, (self.length, _, self.last_is_reduced) = axes
        self.kept = [(extent, stride) for extent, stride, reduced in outer if not reduced]
        self.reduced = [(extent, stride) for extent, stride, reduced in outer if reduced]
        self.spec = spec
        self.lanes = lanes
        self.unroll = unroll
        self.x = x
        self.write_result = write
        self.sums = Accumulation(COMBINE[spec.kind], NEUTRAL[spec.kind], accumulator(spec.dtype))

    def write(self) -> None:
        """Write all loops; threads share the kept axes, and the columns where the last axis is kept."""
        kept = [extent for extent, _ in self.kept]
        width = self.lanes * self.unroll
        steps = 1 if self.last_is_reduced else -(-self.length // width)
        rest = self.length % width
        with shared_loop((*kept, steps), **self._work()) as (*row, step):
            base = _offset(0, row, self.kept)
            flat = flat_row((0, *row), (1, *kept))
            if self.last_is_reduced:
                self._fold_row(base, flat)
                return
            first = flat * self.length
            when(
                step < steps - 1 if rest and steps > 1 else not rest,
                lambda: self._columns(base, first, step * width, self.unroll, self.lanes),
                lambda: self._last_columns(base, first, self.length - rest),
            )

    def _work(self) -> dict[str, int]:
        """How much there is to do, for the decision between one thread and several."""
        return {"macs": self.spec.macs, "bytes_moved": 4 * (self.spec.in_size + self.spec.out_size)}

    def _read(self, offset: Index, lanes: int) -> Expr:
        value = widened(load(self.x, offset, lanes), self.sums.dtype)
        return tirx.abs(value) if self.spec.kind == MAGNITUDE else value

    def _last_columns(self, base: Index, out_base: Index, start: int) -> None:
        """The columns from ``start`` on, fewer than one step; the last vector overlaps its predecessor if it can."""
        vectors = (self.length - start) // self.lanes
        if vectors:
            self._columns(base, out_base, start, vectors, self.lanes)
            start += vectors * self.lanes
        rest = self.length - start
        if rest and self.length >= self.lanes:
            self._columns(base, out_base, self.length - self.lanes, 1, self.lanes)
            return
        while rest:
            lanes = 1 << (rest.bit_length() - 1)
            self._columns(base, out_base, self.length - rest, 1, lanes)
            rest -= lanes

    def _columns(self, base: Index, out_base: Index, column: Index, vectors: int, lanes: int) -> None:
        """``vectors`` vectors of results, accumulated down the reduced axes."""
        tile = self.sums.tile(vectors, lanes)

        def add(offset: Index, tile: RegisterTile) -> None:
            for vector in range(vectors):
                self.sums.add(tile, vector, self._read(offset + column + vector * lanes, lanes))

        self._accumulate(self.reduced, base, tile, add)
        for vector in range(vectors):
            self.write_result(out_base + column + vector * lanes, tile[vector])

    def _fold_row(self, base: Index, flat: Index) -> None:
        """One result: whole vectors along the last axis, then the fold over the lanes."""
        row = RowVectors(self.length, self.lanes, self.unroll, self.sums.dtype)
        tile = self.sums.tile(row.slots, self.lanes)

        def add_row(offset: Index, tile: RegisterTile) -> None:
            def read(column: Index, lanes: int) -> Expr:
                return self._read(offset + column, lanes)

            row.accumulate(self.sums, tile, lambda column: (read(column, self.lanes),))
            if row.rest:
                neutral = self.sums.neutral
                self.sums.add(tile, 0, row.fresh(row.load_rest(read, neutral), neutral))

        self._accumulate(self.reduced, base, tile, add_row)
        combine = self.sums.combine
        self.write_result(flat, horizontal(combine_all(tile, combine), combine))

    def _accumulate(
        self,
        axes: Sequence[tuple[int, int]],
        offset: Index,
        tile: RegisterTile,
        visit: Callable[[Index, RegisterTile], None],
    ) -> None:
        """Nested loops over ``(extent, stride)`` axes, each with partial sums of its own; ``visit`` gets the offset."""
        if not axes:
            visit(offset, tile)
            return
        (extent, stride), *inner = axes

        def step(index: Index, total: RegisterTile) -> None:
            with self.sums.partial(total) if inner else contextlib.nullcontext(total) as part:
                self._accumulate(inner, offset + index * stride, part, visit)

        self.sums.loop(extent, tile, step)


def _offset(base: Index, indices: Sequence[Index], axes: Sequence[tuple[int, int]]) -> Index:
    for index, (_, stride) in zip(indices, axes, strict=True):
        base = base + index * stride
    return base
