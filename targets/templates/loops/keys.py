"""Elements as unsigned integers of the same order."""

from __future__ import annotations

from tvm import tirx

from ..base import Expr
from ..vector.builder import constant
from ..vector.vectors import cast, dtype_of, in_register, is_nan, lanes_of


def order_key(value: Expr, bits: int, descending: bool) -> Expr:
    """Unsigned integers of ``bits`` bits for a vector of elements, in the order that is wanted; NaN is the largest."""
    dtype, lanes = dtype_of(value, 1), lanes_of(value)
    unsigned = f"uint{bits}"

    def word_of(value: Expr) -> Expr:
        return in_register(tirx.reinterpret(unsigned if lanes == 1 else f"{unsigned}x{lanes}", value))

    sign, zero = constant(1, lanes, unsigned) << constant(bits - 1, lanes, unsigned), constant(0, lanes, unsigned)
    if dtype.startswith("float"):
        value = in_register(cast(value, f"float{bits}"))
        word = word_of(value)
        word = in_register(tirx.Select(tirx.EQ(word, sign), zero, word))  # -0 is 0
        word = tirx.Select(tirx.EQ(word & sign, zero), word ^ sign, tirx.bitwise_not(word))
        word = tirx.Select(is_nan(value), tirx.bitwise_not(zero), word)
    elif dtype.startswith("uint"):
        word = cast(value, unsigned)
    else:
        word = word_of(cast(value, f"int{bits}")) ^ sign
    return in_register(tirx.bitwise_not(word) if descending else word)
