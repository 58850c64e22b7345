"""Copies of rows of integers with their padding, so that a kernel reads what every tap stands for without asking."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import Buffer, Expr, Index
from ..vector.builder import Output, bind, constant, load, loop, store, when
from ..vector.dot_product import layer_product
from ..vector.vectors import pieces
from .spatial import Window, balanced_split

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
    most_together
        Output rows that are computed together, at most: pieces end where such *bands* do.
    alignment
        The copies of rows, and of the first columns in them, begin at multiples of so many columns.
    """

    rows: Window
    columns: Window
    pieces: int
    reach: int
    most_together: int = 1
    alignment: int = 1

    @property
    def left(self) -> int:
        """Columns before the first one of a row."""
        return self._aligned(self.columns.pad)

    @property
    def first_read(self) -> int:
        """Column that the first output reads first."""
        return self.left - self.columns.pad

    @property
    def length(self) -> int:
        """Columns of a padded row."""
        window = self.columns
        read = self.first_read + (window.out - 1) * window.stride + self.reach
        return self._aligned(max(self.left + window.size, read))

    @property
    def heights(self) -> list[int]:
        """Output rows of each band, larger ones first."""
        return balanced_split(self.rows.out, self.most_together)

    @property
    def most_rows(self) -> int:
        """Padded rows of the largest piece."""
        bands = len(self.heights)
        ends = [piece * bands // self.pieces for piece in range(self.pieces + 1)]
        return self._count(max(sum(self.heights[begin:end]) for begin, end in itertools.pairwise(ends)))

    @property
    def without_padding(self) -> Window:
        """The horizontal axis over padded rows."""
        return replace(self.columns, pad=0, size=self.length)

    def bands(self, piece: Index) -> tuple[Index, Index]:
        """First band of a piece, and one past the last."""
        bands = len(self.heights)
        if self.pieces == 1:
            return 0, bands
        return bind(piece * bands // self.pieces), bind((piece + 1) * bands // self.pieces)

    def first_row(self, band: Index) -> Index:
        """First output row of a band."""
        smallest, larger = divmod(self.rows.out, len(self.heights))
        if larger == 0:
            return bind(band * smallest)
        return bind(band * smallest + (min if isinstance(band, int) else tirx.min)(band, larger))

    def inputs(self, begin: Index, end: Index) -> tuple[Index, Index]:
        """First input row that these output rows read, negative where it is padding, and how many rows they read."""
        return bind(begin * self.rows.stride - self.rows.pad), self._count(end - begin)

    def _aligned(self, columns: int) -> int:
        return -(-columns // self.alignment) * self.alignment

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


class PieceWriter:
    """Writes what one thread does with integers: some rows of an image or plane, read from a copy with its padding.

    A plan has the ``spec``, ``lanes``, ``padded`` rows and ``padded_bytes`` of a piece, the ``column_bytes`` of a row's
    element, the ``groups`` of outputs that are computed from one copy, and the ``column_runs`` of tiles in a band.
    """

    def __init__(
        self, plan: Any, target: Cpu, operands: tuple[Buffer, Buffer, Buffer | None], out: Output, plane: Index
    ) -> None:
        self.plan = plan
        self.spec = plan.spec
        self.lanes = plan.lanes
        self.products = layer_product(target, plan.spec)
        self.copier = RowCopier(plan.spec.zero_point, target.vector_bytes, self.products.offset)
        self.data, self.weight, self.table = operands
        self.out = out
        self.plane = plane

    def write(self, piece: Index) -> None:
        """Copy the rows of a piece with their padding, then all its tiles."""
        plan, place = self.plan, self.plan.padded
        begin, end = place.bands(piece)
        padded = T.alloc_buffer((plan.padded_bytes,), "uint8", scope="global", align=64)
        first_row = place.first_row(begin)
        first, count = place.inputs(first_row, place.first_row(end))
        self.pad_rows(first, count, padded)
        with loop(plan.groups) as group:
            passed = 0
            for height, equal in itertools.groupby(place.heights):
                behind = passed + len(list(equal))
                with loop(*_within(passed, behind, begin, end)) as band:
                    y = place.first_row(band)
                    for run in plan.column_runs:
                        with loop(run.count) as index:
                            x = bind(run.start + index * run.width)
                            self.tile(padded, group, y, y - first_row, x, (height, run.width))
                passed = behind

    def pad_rows(self, first: Index, count: Index, padded: Buffer) -> None:
        """Copy so many rows, from a first one on that may be padding."""
        raise NotImplementedError

    def pad_row(self, plane: Index, image_row: Index, padded: Buffer, to: Index) -> None:
        """Copy one row of a plane."""
        spec, place, size = self.spec, self.plan.padded, self.plan.column_bytes
        width = spec.w * size
        source = bind((plane * spec.h + image_row) * width)
        exists = tirx.And(image_row >= 0, image_row < spec.h)
        left, length = place.left * size, place.length * size
        self.copier.copy(self.data, source, width, left, length, padded, to, exists)

    def tile(self, padded: Buffer, group: Index, y: Index, row: Index, x: Index, size: tuple[int, int]) -> None:
        """Write the outputs of a group from ``x`` on, and from output row ``y`` on, number ``row`` of the piece.

        ``size`` are rows and columns.
        """
        raise NotImplementedError

    def first_sum(self, block: Index) -> Expr:
        """What the sums of a block of outputs start from."""
        if self.table is None:
            return constant(0, self.lanes, "int32")
        return load(self.table, block * self.lanes, self.lanes)


def _within(first: int, behind: int, begin: Index, end: Index) -> tuple[Index, Index]:
    """End and begin of those bands in ``[first, behind)`` that a piece has."""
    if isinstance(begin, int):
        return min(behind, end), max(first, begin)
    start = bind(tirx.max(begin, first))
    return bind(tirx.max(tirx.min(end, behind), start)), start
