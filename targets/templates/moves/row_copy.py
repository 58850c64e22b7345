"""Copies of contiguous rows: concatenation, constant padding, and writing rows into a table.

Both see a tensor as ``outer`` rows. Concatenation puts one row of each part after the other; padding writes each row of
the operand between two runs of the constant. A scatter copies the table, then its rows, each thread those that belong
to its own part of the table: so rows for one place are written in order, whatever the number of threads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Expr, Index
from ..parallelism import shared_loop
from ..vector.bfloat16 import STORED
from ..vector.builder import Output, bind, constant, load, loop, make_prim_func, split_index, store, when
from ..vector.vectors import in_register, maximum, minimum, pieces


@dataclass(frozen=True)
class ConcatSpec:
    """``outer`` rows, each made of one run of every part; ``runs`` holds their lengths in elements."""

    outer: int
    runs: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.outer, *self.runs) < 1:
            raise ValueError(f"every extent must be positive: {self}")


@dataclass(frozen=True)
class PadSpec:
    """A row-major tensor of ``shape`` with ``before`` and ``after`` elements of ``value`` added along each axis."""

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.before) == len(self.after) or not self.shape:
            raise ValueError(f"one amount before and after each dimension is needed: {self}")
        if min(self.shape) < 1 or min(*self.before, *self.after) < 0:
            raise ValueError(f"extents must be positive and amounts not negative: {self}")

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(b + extent + a for b, extent, a in zip(self.before, self.shape, self.after, strict=True))


@dataclass(frozen=True)
class ScatterSpec:
    """``count`` rows of ``width`` elements for a table of ``extent`` rows; ``combine`` is that of `ScatterAttrs`."""

    extent: int
    width: int
    count: int
    combine: str = "replace"
    dtype: str = "float32"
    index_dtype: str = "int64"

    def __post_init__(self) -> None:
        if min(self.extent, self.width, self.count) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        if self.combine not in _COMBINED:
            raise ValueError(f"combine must be one of {', '.join(_COMBINED)}: {self}")


_COMBINED: dict[str, Callable[[Expr, Expr], Expr]] = {
    "replace": lambda kept, new: new,
    "sum": operator.add,
    "prod": operator.mul,
    "amax": maximum,
    "amin": minimum,
}


def build_concat(spec: ConcatSpec, target: Cpu) -> tirx.PrimFunc:
    """Write the PrimFunc ``(*parts, out)``."""
    row = sum(spec.runs)
    inputs = [BufferSpec(f"part{index}", spec.outer * run, spec.dtype) for index, run in enumerate(spec.runs)]
    lanes = _lanes(spec.dtype, target)

    def body(parts: Sequence[Buffer], out: Output) -> None:
        with shared_loop((spec.outer,), bytes_moved=2 * _bytes(spec.dtype) * spec.outer * row) as (index,):
            start = 0
            for part, run in zip(parts, spec.runs, strict=True):
                _copy(part, index * run, out.buffer, index * row + start, run, lanes)
                start += run

    return make_prim_func("concat", inputs, BufferSpec("out", spec.outer * row, spec.dtype), body, NO_EPILOGUE)


def build_pad(spec: PadSpec, target: Cpu) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, out)``."""
    shape, out_shape = spec.shape, spec.out_shape
    lanes = _lanes(spec.dtype, target)
    size = math.prod(out_shape)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        (x,) = buffers
        rows = out_shape[:-1]
        with shared_loop((math.prod(rows),), bytes_moved=2 * _bytes(spec.dtype) * size) as (row,):
            coords = split_index(row, rows) if rows else ()
            source: Index = 0
            inside: Expr = True
            for coordinate, before, extent, whole in zip(coords, spec.before, shape, out_shape, strict=False):
                source = source * extent + (coordinate - before)
                if whole != extent:
                    within = tirx.all(coordinate >= before, coordinate < before + extent)
                    inside = within if inside is True else tirx.all(inside, within)
            first = row * out_shape[-1]

            def copy_row() -> None:
                _fill(out.buffer, first, spec.before[-1], spec.value, spec.dtype, lanes)
                _copy(x, source * shape[-1], out.buffer, first + spec.before[-1], shape[-1], lanes)
                _fill(out.buffer, first + spec.before[-1] + shape[-1], spec.after[-1], spec.value, spec.dtype, lanes)

            when(inside, copy_row, lambda: _fill(out.buffer, first, out_shape[-1], spec.value, spec.dtype, lanes))

    inputs = (BufferSpec("x", math.prod(shape), spec.dtype),)
    return make_prim_func("pad", inputs, BufferSpec("out", size, spec.dtype), body, NO_EPILOGUE)


def build_scatter(spec: ScatterSpec, target: Cpu) -> tirx.PrimFunc:
    """Write the PrimFunc ``(table, indices, rows, out)``; a row for a place outside of the table is dropped."""
    size, lanes = spec.extent * spec.width, _lanes(spec.dtype, target)
    moved = 2 * _bytes(spec.dtype) * (size + spec.count * spec.width)
    part = -(-spec.extent // target.cores)  # rows of the table that one thread writes

    def body(buffers: Sequence[Buffer], result: Output) -> None:
        table, indices, rows = buffers
        out = result.buffer
        with shared_loop((-(-spec.extent // part),), bytes_moved=moved) as (chunk,):
            first = chunk * part

            def copy(count: int) -> None:
                _copy(table, first * spec.width, out, first * spec.width, count * spec.width, lanes)

            when(chunk < spec.extent // part, lambda: copy(part), lambda: copy(spec.extent % part))
            with loop(spec.count) as row:
                index = bind(indices[row])

                def write(offset: Index, width: int) -> None:
                    to = tirx.Cast("int32", index) * spec.width + offset
                    new = load(rows, row * spec.width + offset, width)
                    store(out, to, _COMBINED[spec.combine](in_register(load(out, to, width)), in_register(new)), width)

                inside = tirx.all(index >= first, index < first + part, index < spec.extent)
                when(inside, lambda: _runs(spec.width, lanes, write))

    inputs = (
        BufferSpec("table", size, spec.dtype),
        BufferSpec("indices", spec.count, spec.index_dtype),
        BufferSpec("rows", spec.count * spec.width, spec.dtype),
    )
    return make_prim_func("scatter", inputs, BufferSpec("out", size, spec.dtype), body, NO_EPILOGUE)


def _copy(source: Buffer, start: Index, out: Buffer, to: Index, count: int, lanes: int) -> None:
    def move(offset: Index, width: int) -> None:
        store(out, to + offset, load(source, start + offset, width), width)

    _runs(count, lanes, move)


def _fill(out: Buffer, to: Index, count: int, value: float, dtype: str, lanes: int) -> None:
    _runs(count, lanes, lambda offset, width: store(out, to + offset, constant(value, width, dtype), width))


def _runs(count: int, lanes: int, visit: Callable[[int, int], None]) -> None:
    """``visit(offset, width)`` over ``count`` elements: whole vectors in a loop, then ever narrower ones."""
    whole = count // lanes
    if whole:
        with loop(whole) as vector:
            visit(vector * lanes, lanes)
    for offset, width in pieces(count % lanes, lanes):
        visit(whole * lanes + offset, width)


def _lanes(dtype: str, target: Cpu) -> int:
    return target.lanes(4 if dtype in STORED else _bytes(dtype))  # numbers of 16 bits are float32 in registers


def _bytes(dtype: str) -> int:
    return tirx.const(0, STORED.get(dtype, dtype)).ty.dtype.itemsize
