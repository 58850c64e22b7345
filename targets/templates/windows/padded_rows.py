"""Copies of rows of integers with their padding, so that a kernel reads what every tap stands for without asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..base import Buffer, Expr, Index
from ..vector.builder import bind, constant, load, loop, store, when
from ..vector.vectors import pieces
from .spatial import Window

UNROLLED_WORDS = 16  # of a kernel row; those of a longer one are a loop
_SIGN_BIT = 0x80


@dataclass(frozen=True)
class PaddedRows:
    """The input rows that one piece of a convolution's output rows reads, with their padding.

    Attributes
    ----------
    rows, columns
        The axes of the convolution.
    pieces
        How many pieces the output rows are cut into.
    reach
        Neighbouring columns that one output reads, those included for which there is no weight.
    """

    rows: Window
    columns: Window
    pieces: int
    reach: int

    @property
    def length(self) -> int:
        """Columns of a padded row."""
        window = self.columns
        return max(window.pad + window.size, (window.out - 1) * window.stride + self.reach)

    @property
    def most_rows(self) -> int:
        """Padded rows of the largest piece."""
        return self._count(-(-self.rows.out // self.pieces))

    @property
    def without_padding(self) -> Window:
        """The horizontal axis over padded rows."""
        return replace(self.columns, pad=0, size=self.length)

    def outputs(self, piece: Index) -> tuple[Index, Index]:
        """First output row of a piece, and one past the last."""
        if self.pieces == 1:
            return 0, self.rows.out
        return bind(piece * self.rows.out // self.pieces), bind((piece + 1) * self.rows.out // self.pieces)

    def inputs(self, begin: Index, end: Index) -> tuple[Index, Index]:
        """First input row that these output rows read, negative where it is padding, and how many rows they read."""
        return bind(begin * self.rows.stride - self.rows.pad), self._count(end - begin)

    def _count(self, outputs: Index) -> Index:
        """Input rows that so many neighbouring output rows read."""
        return (outputs - 1) * self.rows.stride + (self.rows.kernel - 1) * self.rows.dilation + 1


@dataclass(frozen=True)
class RowCopier:
    """Copies rows of bytes into a scratch buffer, of the signs that a kernel's products take.

    Attributes
    ----------
    zero_point
        What stands for zero in the input.
    vector_bytes
        Widest copy.
    offset
        What is added to every byte, see `tersor.targets.templates.vector.dot_product.DotProduct`.
    """

    zero_point: int
    vector_bytes: int
    offset: int = 0

    def copy(
        self, data: Buffer, source: Index, size: int, left: int, length: int, padded: Buffer, to: Index, exists: Expr
    ) -> None:
        """``size`` bytes from ``source``, after ``left`` and before further bytes of padding; ``length`` altogether.

        Where the row does not exist, it is all padding.
        """

        def copy_vector(at: Index, count: int) -> None:
            value = load(data, source + at, count)
            flipped = value ^ constant(_SIGN_BIT, count, "uint8") if self.offset else value
            store(padded, to + left + at, flipped, count)

        def write() -> None:
            self._in_vectors(size, copy_vector)
            self._fill(padded, to, left)
            self._fill(padded, to + (left + size), length - left - size)

        when(exists, write, lambda: self._fill(padded, to, length))

    def _fill(self, padded: Buffer, to: Index, size: int) -> None:
        zero = (self.zero_point + self.offset) & 0xFF
        self._in_vectors(size, lambda at, count: store(padded, to + at, constant(zero, count, "uint8"), count))

    def _in_vectors(self, size: int, action: Callable[[Index, int], None]) -> None:
        """``action(offset, count)`` for so many bytes, a vector at a time."""
        whole, rest = divmod(size, self.vector_bytes)
        if whole:
            with loop(whole) as step:
                action(step * self.vector_bytes, self.vector_bytes)
        for start, count in pieces(rest, self.vector_bytes):
            action(whole * self.vector_bytes + start, count)
