"""Running totals and extrema along an axis."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import ArgCumMaxOp, ArgCumMinOp, CumMaxOp, CumMinOp, CumProdOp, CumSumOp, LogCumSumExpOp, ScanOp
from ...machines.target import Cpu
from ..base import Buffer, Expr, Index
from ..vector.builder import constant, load, loop, store
from ..vector.vector_math import library
from ..vector.vectors import cast, dtype_of, in_register, is_nan, lanes_of
from .columns import for_each_column, lanes_for, split_at
from .formula import writes
from .keys import order_key


@writes(CumSumOp, CumProdOp, LogCumSumExpOp)
def totals(op: ScanOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """Elements along the axis one after another, totals in a wider type."""
    outer, extent, inner = split_at(op.x.shape, op.attrs.axis)
    dtype = dtype_of(load(x, 0, 1))
    wide = "float64" if dtype.startswith("float") else dtype
    neutral, combine = _TOTALS[type(op)]

    def walk(row: Index, column: Index, width: int) -> None:
        total = T.alloc_buffer((width,), wide)
        store(total, 0, constant(neutral, width, wide), width)
        with loop(extent) as index:
            at = (row * extent + index) * inner + column
            store(total, 0, combine(load(total, 0, width), cast(load(x, at, width), wide)), width)
            store(y, at, cast(load(total, 0, width), dtype), width)

    for_each_column(outer, inner, lanes_for(op.x.type.dtype.itemsize, target), op.cost().bytes, walk)


def _log_of_sum(total: Expr, value: Expr) -> Expr:
    """log(exp(total) + exp(value)) without overflow; also for two equal infinities, of which there is no difference."""
    total, value = in_register(total), in_register(value)
    low = in_register(tirx.Select(is_nan(value), value, tirx.Select(value < total, value, total)))
    high = in_register(tirx.Select(is_nan(value), value, tirx.Select(value < total, total, value)))
    infinity = constant(float("inf"), lanes_of(value), dtype_of(value, 1))
    is_equal_infinity = tirx.And(tirx.EQ(low, high), tirx.EQ(tirx.abs(in_register(low)), infinity))
    return tirx.Select(is_equal_infinity, high, high + library("log1p", library("exp", in_register(low - high))))


_TOTALS = {
    CumSumOp: (0, lambda total, value: total + value),
    CumProdOp: (1, lambda total, value: total * value),
    LogCumSumExpOp: (float("-inf"), _log_of_sum),
}


@writes(CumMaxOp, CumMinOp)
def extrema(op: ScanOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """The extremum so far; NaN from the first one on."""
    outer, extent, inner = split_at(op.x.shape, op.attrs.axis)
    dtype = dtype_of(load(x, 0, 1))
    compare = tirx.GE if isinstance(op, CumMaxOp) else tirx.LE

    def walk(row: Index, column: Index, width: int) -> None:
        best = T.alloc_buffer((width,), dtype)
        store(best, 0, load(x, row * extent * inner + column, width), width)
        with loop(extent) as index:
            at = (row * extent + index) * inner + column
            value, kept = in_register(load(x, at, width)), load(best, 0, width)
            found = compare(value, kept)
            if dtype.startswith("float"):
                found = tirx.Or(found, is_nan(value))
            store(best, 0, tirx.Select(found, value, kept), width)
            store(y, at, load(best, 0, width), width)

    for_each_column(outer, inner, lanes_for(op.x.type.dtype.itemsize, target), op.cost().bytes, walk)


@writes(ArgCumMaxOp, ArgCumMinOp)
def places_of_extrema(op: ScanOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """Where the extremum so far was last, by integers in the order of the elements.

    Each element waits for the decision about the one before, which takes two short instructions on integers.
    """
    outer, extent, inner = split_at(op.x.shape, op.attrs.axis)
    bits = 64 if op.x.type.dtype.itemsize == 8 else 32
    unsigned = f"uint{bits}"

    def key_of(value: Expr, width: int) -> Expr:
        if isinstance(op, ArgCumMaxOp):
            return order_key(value, bits, descending=False)
        key = order_key(value, bits, descending=True)
        if not dtype_of(value, 1).startswith("float"):
            return key
        return in_register(tirx.Select(is_nan(value), tirx.bitwise_not(constant(0, width, unsigned)), key))

    def walk(row: Index, column: Index, width: int) -> None:
        best, place = T.alloc_buffer((width,), unsigned), T.alloc_buffer((width,), "int32")
        store(best, 0, constant(0, width, unsigned), width)
        store(place, 0, constant(0, width, "int32"), width)
        with loop(extent) as index:
            at = (row * extent + index) * inner + column
            key, kept = key_of(in_register(load(x, at, width)), width), load(best, 0, width)
            here = constant(1, width, "int32") * index
            store(place, 0, tirx.Select(tirx.GE(key, kept), here, load(place, 0, width)), width)
            store(best, 0, tirx.Max(key, kept), width)  # last, as the comparison reads it
            store(y, at, cast(load(place, 0, width), "int64"), width)

    for_each_column(outer, inner, lanes_for(op.x.type.dtype.itemsize, target), op.cost().bytes, walk)
