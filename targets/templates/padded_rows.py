"""Copies of rows of integers with their padding, so that a kernel reads what every tap stands for without asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .builder import constant, load, loop, store, when
from .dot_product import DotProduct
from .vectors import pieces

Buffer = Any
Expr = Any
Index = Any

_SIGN_BIT = 0x80


@dataclass(frozen=True)
class RowCopier:
    """Copies rows of bytes into a scratch buffer, of the signs that a kernel's products take.

    Attributes
    ----------
    products
        What the bytes are multiplied with.
    zero_point
        What stands for zero in the input.
    vector_bytes
        Widest copy.
    """

    products: DotProduct
    zero_point: int
    vector_bytes: int

    def copy(
        self, data: Buffer, source: Index, size: int, left: int, length: int, padded: Buffer, to: Index, exists: Expr
    ) -> None:
        """``size`` bytes from ``source``, after ``left`` and before further bytes of padding; ``length`` altogether.

        Where the row does not exist, it is all padding.
        """

        def copy_vector(at: Index, count: int) -> None:
            value = load(data, source + at, count)
            flipped = value ^ constant(_SIGN_BIT, count, "uint8") if self.products.offset else value
            store(padded, to + left + at, flipped, count)

        def write() -> None:
            self._in_vectors(size, copy_vector)
            self._fill(padded, to, left)
            self._fill(padded, to + (left + size), length - left - size)

        when(exists, write, lambda: self._fill(padded, to, length))

    def _fill(self, padded: Buffer, to: Index, size: int) -> None:
        zero = (self.zero_point + self.products.offset) & 0xFF
        self._in_vectors(size, lambda at, count: store(padded, to + at, constant(zero, count, "uint8"), count))

    def _in_vectors(self, size: int, action: Callable[[Index, int], None]) -> None:
        """``action(offset, count)`` for so many bytes, a vector at a time."""
        whole, rest = divmod(size, self.vector_bytes)
        if whole:
            with loop(whole) as step:
                action(step * self.vector_bytes, self.vector_bytes)
        for start, count in pieces(rest, self.vector_bytes):
            action(whole * self.vector_bytes + start, count)
