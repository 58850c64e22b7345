"""Softmax along the last axis of a plain row-major tensor.

Each row is read twice and kept in L1 in between: once for its maximum, once for the exponentials, whose sum comes
along with them; then the exponentials are scaled. A prologue may change the logits as they are read (scale, additive
mask).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import Output, RegisterTile, broadcast, constant, load, make_prim_func, store
from ..vector.vector_math import exp_nonpositive
from ..vector.vectors import combine_all, horizontal, in_register, lanes_of
from .row_vectors import RowKnobs, RowVectors, check_rows, flat_row, row_candidates, row_extents


@dataclass(frozen=True)
class SoftmaxSpec:
    """``out[r, c] = exp(x[r, c]) / sum_c exp(x[r, c])`` over ``rows`` rows of ``cols`` elements.

    ``shape``, when given, is the logical shape with ``rows * cols`` elements, the last extent being ``cols``: prologue
    and epilogue then see its coordinates instead of ``(row, column)``.
    """

    rows: int
    cols: int
    shape: tuple[int, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_rows(self.rows, self.cols, self.shape, self.dtype)

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return self.rows * self.cols

    @property
    def macs(self) -> int:
        """Multiply-adds: about a dozen for each exponential."""
        return 12 * self.size


def candidates(spec: SoftmaxSpec, target: Cpu) -> list[RowKnobs]:
    """Feasible knobs, best analytic guess first."""
    return row_candidates(spec.cols, target.lanes(), 4, 2, 8, 1)


def build(
    spec: SoftmaxSpec,
    target: Cpu,
    knobs: RowKnobs,
    epilogue: Epilogue = NO_EPILOGUE,
    prologue: Epilogue = NO_EPILOGUE,
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, *prologue buffers, *epilogue buffers, out)``.

    ``prologue.apply`` is called on each vector of ``x`` where it is read: twice for each element.
    """
    row = RowVectors(spec.cols, target.lanes(), knobs.unroll)
    inputs = (BufferSpec("x", spec.size, spec.dtype), *prologue.buffers)
    output = BufferSpec("out", spec.size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        x, *prologue_buffers = buffers
        with shared_loop(row_extents(spec), macs=spec.macs, bytes_moved=8 * spec.size) as indices:
            first = flat_row(indices, row_extents(spec)) * spec.cols

            def at(offset: Index, lanes: int) -> VectorAt:
                return VectorAt((*indices, offset), len(indices), lanes, first + offset)

            def read(offset: Index, lanes: int) -> Expr:
                return prologue.apply(load(x, first + offset, lanes), at(offset, lanes), prologue_buffers)

            def write(offset: Index, value: Expr) -> None:
                out.store(value, at(offset, lanes_of(value)))

            scratch = T.alloc_buffer((max(1, row.whole) * row.lanes,), align=64)
            total, rest = write_exponentials(row, read, lambda offset, value: store(scratch, offset, value, row.lanes))
            scale = broadcast(in_register(constant(1.0, 1) / total), row.lanes)
            row.for_each_vector(lambda offset, _: write(offset, load(scratch, offset, row.lanes) * scale))
            if rest is not None:
                row.store_rest(rest * scale, write)

    return make_prim_func("softmax", inputs, output, body, epilogue)


def write_exponentials(
    row: RowVectors,
    read: Callable[[Index, int], Expr],
    write: Callable[[Index, Expr], None],
    *,
    least_peak: float = float("-inf"),
) -> tuple[Expr, Expr | None]:
    """Write ``exp(x - max x)`` for the whole vectors of a row, or ``exp(x - least_peak)`` if that is larger.

    Returns
    -------
    tuple
        The sum over the row, a scalar; and the exponentials of the rest of the row, ``None`` if there is none. The
        caller stores those: they overlap what was written.
    """
    lanes = row.lanes
    peaks = RegisterTile(row.slots, lanes)
    peaks.fill(least_peak)

    def raise_peak(offset: Index, slot: int) -> None:
        peaks[slot] = T.max(peaks[slot], read(offset, lanes))

    row.for_each_vector(raise_peak)
    peak = combine_all(peaks, T.max)
    rest = row.load_rest(read, float("-inf")) if row.rest else None
    if rest is not None:
        peak = T.max(peak, rest)
    peak = broadcast(in_register(horizontal(peak, T.max)), lanes)
    sums = RegisterTile(row.slots, lanes)
    sums.fill(0.0)

    def add(offset: Index, slot: int) -> None:
        value = exp_nonpositive(read(offset, lanes) - peak)
        write(offset, value)
        sums[slot] = sums[slot] + value

    row.for_each_vector(add)
    if rest is not None:
        rest = exp_nonpositive(rest - peak)
        sums[0] = sums[0] + row.fresh(rest, 0.0)
    return horizontal(combine_all(sums, operator.add), operator.add), rest
