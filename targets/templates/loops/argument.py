"""Where along an axis the first largest or smallest element is."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import ArgMaxOp, ArgMinOp
from ...machines.target import Cpu
from ..base import Buffer, Expr, Index
from ..parallelism import shared_loop
from ..vector.builder import constant, load, loop, store, when
from ..vector.vectors import dtype_of, in_register, pieces
from .formula import writes


@writes(ArgMaxOp, ArgMinOp)
def argument(op: ArgMaxOp | ArgMinOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """Elements are compared one after another, as many columns at once as a vector has lanes."""
    axis, shape = op.attrs.axis, op.x.shape
    outer, extent, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    lanes = target.lanes(max(4, op.x.type.dtype.itemsize))
    dtype = dtype_of(load(x, 0, 1))
    compare = tirx.GT if isinstance(op, ArgMaxOp) else tirx.LT

    def find(row: Index, column: Index, width: int) -> None:
        best, place = T.alloc_buffer((width,), dtype), T.alloc_buffer((width,), "int32")
        start = row * extent * inner + column
        store(best, 0, load(x, start, width), width)
        store(place, 0, constant(0, width, "int32"), width)
        with loop(extent, 1) as index:
            value, kept = in_register(load(x, start + index * inner, width)), load(best, 0, width)
            found = _is_first(compare, value, kept, width)
            here = constant(1, width, "int32") * index

            def keep(value: Expr = value, here: Expr = here) -> None:
                store(place, 0, here, width)
                store(best, 0, value, width)  # last, as the comparison reads it

            if width == 1:  # a branch that is rarely taken
                when(found, keep)
            else:
                keep(tirx.Select(found, value, kept), tirx.Select(found, here, load(place, 0, width)))
        places = load(place, 0, width)
        store(y, row * inner + column, tirx.Cast("int64" if width == 1 else f"int64x{width}", places), width)

    def rest(row: Index) -> None:
        for first, width in pieces(inner % lanes, lanes):
            find(row, inner // lanes * lanes + first, width)

    runs = inner // lanes
    with shared_loop((outer, max(runs, 1)), bytes_moved=op.cost().bytes) as (row, run):
        if runs:
            find(row, run * lanes, lanes)
        if inner % lanes:
            when(run == 0, lambda: rest(row))


def _is_first(compare: Callable[[Expr, Expr], Expr], value: Expr, kept: Expr, width: int) -> Expr:
    """Whether ``value`` is more extreme than ``kept``: NaN is more so than all numbers."""
    if not dtype_of(value, 1).startswith("float"):
        return compare(value, kept)
    lowest = constant(-math.inf, width, dtype_of(value, 1))
    # As a number, since TVM takes the negation of >= for <.
    is_number = in_register(tirx.Cast("uint8" if width == 1 else f"uint8x{width}", tirx.GE(value, lowest)))
    is_nan = tirx.EQ(is_number, constant(0, width, "uint8"))
    return tirx.And(tirx.GE(kept, lowest), tirx.Or(compare(value, kept), is_nan))
