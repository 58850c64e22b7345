"""Vectors of 8-bit integers and of the float32 numbers that they stand for; see "Integers" in docs/kernels.md.

Everything here is called while a PrimFunc is being written, like `tersor.targets.templates.vector.vectors`.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Expr
from .builder import constant
from .operand_types import INTEGER_RANGES, is_integer
from .vectors import dtype_of, lanes_of


def rounded(value: Expr) -> Expr:
    """A float32 expression whose last operation rounds, whatever follows.

    Without this fence, which is no instruction, LLVM contracts a product and a sum into one fused multiply-add. That is
    more precise, but where it happens is up to LLVM.
    """
    return T.call_llvm_pure_intrin(dtype_of(value), "llvm.arithmetic.fence", value)


def quantize(value: Expr, scale: float, zero_point: int, dtype: str) -> Expr:
    """``clamp(round(value * (1 / scale)) + zero_point)`` as ``dtype``; ties go to even, NaN becomes the smallest."""
    lanes = lanes_of(value)
    low, high = INTEGER_RANGES[dtype]
    steps = value if scale == 1.0 else value * constant(1 / scale, lanes)
    # One instruction each, since the bound is no NaN; of NaN and a number they take the number.
    steps = T.call_llvm_pure_intrin(dtype_of(steps), "llvm.maxnum", steps, constant(low - zero_point, lanes))
    steps = T.call_llvm_pure_intrin(dtype_of(steps), "llvm.minnum", steps, constant(high - zero_point, lanes))
    integers = T.call_llvm_pure_intrin(dtype_of(steps).replace("float", "int"), "llvm.lrint", steps)
    return tirx.Cast(_typed(dtype, lanes), integers + constant(zero_point, lanes, "int32"))


def dequantize(value: Expr, scale: Expr, zero_point: int) -> Expr:
    """``float32(value - zero_point) * scale``, rounded."""
    lanes = lanes_of(value)
    difference = tirx.Cast(_typed("int32", lanes), value) - constant(zero_point, lanes, "int32")
    return rounded(as_float32(difference) * scale)


def accumulator(dtype: str) -> str:
    """Element type of sums of numbers of type ``dtype``."""
    return "int32" if is_integer(dtype) else "float64" if dtype == "float64" else "float32"


def add(total: Expr, value: Expr) -> Expr:
    """``total + value`` in the type of the total, which may be wider."""
    return total + widened(value, dtype_of(total, 1))


def widened(value: Expr, dtype: str) -> Expr:
    """The same numbers as elements of type ``dtype``."""
    return value if dtype_of(value, 1) == dtype else tirx.Cast(_typed(dtype, lanes_of(value)), value)


def mean(total: Expr, reciprocal: Expr) -> Expr:
    """A mean: the sum, of floats or of integers, times the reciprocal of the count; of integers in float32."""
    return total * reciprocal if dtype_of(total, 1).startswith("float") else rounded(as_float32(total) * reciprocal)


def as_float32(value: Expr) -> Expr:
    """The nearest float32 numbers of integers."""
    return tirx.Cast(_typed("float32", lanes_of(value)), value)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
