"""Where along an axis the first largest or smallest element is."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import ArgMaxOp, ArgMinOp
from ...machines.target import Cpu
from ..base import Buffer, Expr, Index
from ..vector.builder import constant, load, loop, store, when
from ..vector.vectors import cast, dtype_of, in_register, is_nan
from .columns import for_each_column, lanes_for, split_at
from .formula import writes


@writes(ArgMaxOp, ArgMinOp)
def argument(op: ArgMaxOp | ArgMinOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """Elements are compared one after another, as many columns at once as a vector has lanes."""
    outer, extent, inner = split_at(op.x.shape, op.attrs.axis)
    lanes = lanes_for(op.x.type.dtype.itemsize, target)
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
        store(y, row * inner + column, cast(places, "int64"), width)

    for_each_column(outer, inner, lanes, op.cost().bytes, find)


def _is_first(compare: Callable[[Expr, Expr], Expr], value: Expr, kept: Expr, width: int) -> Expr:
    """Whether ``value`` is more extreme than ``kept``: NaN is more so than all numbers."""
    if not dtype_of(value, 1).startswith("float"):
        return compare(value, kept)
    lowest = constant(-math.inf, width, dtype_of(value, 1))
    return tirx.And(tirx.GE(kept, lowest), tirx.Or(compare(value, kept), is_nan(value)))
