"""Softmax weights of a row as integers from 0 to 255, the same as those of the interpreter: `softmax_shares`.

``255 * 2^x`` for ``x = (score - peak) * log2(e)``, from -16 on: a polynomial of the fraction of ``x``, to whose
exponent the nearest integer is added. Each float32 operation is rounded by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

from tvm.tirx.script.builder import ir as T

from ....ir.ops.integers import LEAST_PEAK, LEAST_POWER, LOG2_E, SHARE_POLYNOMIAL
from ..base import Expr, Index
from ..vector.builder import RegisterTile, broadcast, constant
from ..vector.integers import rounded
from ..vector.vector_math import ROUNDING
from ..vector.vectors import combine_all, dtype_of, horizontal, in_register, lanes_of
from .row_vectors import RowVectors

_MANTISSA_BITS = 23


def write_shares(row: RowVectors, read: Callable[[Index, int], Expr], write: Callable[[Index, Expr], None]) -> Expr:
    """Write ``round(255 * exp(x - largest x))`` of a row as int32; the sum, a scalar. NaN gives 0."""
    lanes = row.lanes
    peaks = RegisterTile(row.slots, lanes)
    peaks.fill(LEAST_PEAK)

    def raise_peak(offset: Index, slot: int) -> None:
        peaks[slot] = _larger(read(offset, lanes), peaks[slot])

    row.for_each_vector(raise_peak)
    peak = combine_all(peaks, _larger)
    rest = row.load_rest(read, float("-inf")) if row.rest else None
    if rest is not None:
        peak = _larger(rest, peak)
    peak = broadcast(in_register(horizontal(peak, _larger)), lanes)
    counts = replace(row, dtype="int32")
    sums = RegisterTile(row.slots, lanes, "int32")
    sums.fill(0)

    def add(offset: Index, slot: int) -> None:
        value = _share(read(offset, lanes), peak)
        write(offset, value)
        sums[slot] = sums[slot] + value

    row.for_each_vector(add)
    if rest is not None:
        value = _share(rest, peak)
        counts.store_rest(value, write)
        sums[0] = sums[0] + counts.fresh(value, 0)
    return horizontal(combine_all(sums, operator.add), operator.add)


def _larger(value: Expr, bound: Expr) -> Expr:
    """The larger of two numbers; of NaN and a number, the number."""
    return T.call_llvm_pure_intrin(dtype_of(value), "llvm.maxnum", value, bound)


def _share(score: Expr, peak: Expr) -> Expr:
    lanes = lanes_of(score)
    integer = dtype_of(score).replace("float", "int")
    power = rounded((score - peak) * constant(LOG2_E, lanes))
    power = in_register(_larger(power, constant(LEAST_POWER, lanes)))
    shifted = in_register(power + constant(ROUNDING, lanes))
    rest = in_register(power - (shifted - constant(ROUNDING, lanes)))
    share = constant(SHARE_POLYNOMIAL[0], lanes)
    for coefficient in SHARE_POLYNOMIAL[1:]:
        share = rounded(share * rest) + constant(coefficient, lanes)
    exponent = T.shift_left(T.reinterpret(integer, shifted), constant(_MANTISSA_BITS, lanes, "int32"))
    scaled = T.reinterpret(dtype_of(score), T.reinterpret(integer, share) + exponent)
    return in_register(T.call_llvm_pure_intrin(integer, "llvm.lrint", scaled))
