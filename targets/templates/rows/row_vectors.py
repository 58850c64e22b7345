"""Walking along the contiguous rows of a tensor in whole vectors, the rest of a row included.

The rest is one more vector that ends where the row ends: it overlaps its predecessor, whose elements are then computed
twice. That is cheaper than a loop over single elements and needs no masked loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Expr, Index
from ..registry import Spec
from ..vector.accumulation import Accumulation
from ..vector.bfloat16 import check_numbers
from ..vector.builder import RegisterTile, constant, load, loop, store
from ..vector.vectors import in_register, lane_slice, pieces


@dataclass(frozen=True)
class RowKnobs:
    """``unroll``: vectors handled in one step of the loops along a row, or accumulated side by side."""

    unroll: int = 4


def row_candidates(length: int, lanes: int, *unrolls: int) -> list[RowKnobs]:
    """Those of ``unrolls`` for which a row of ``length`` elements has enough vectors, and 1."""
    vectors = max(1, length // lanes)
    return [RowKnobs(unroll) for unroll in unrolls if unroll <= vectors or unroll == 1]


@dataclass(frozen=True)
class RowVectors:
    """A row of ``length`` elements as vectors of ``lanes``, several of them a step so that their latencies overlap.

    Attributes
    ----------
    length
        Elements of the row.
    lanes
        Lanes of one vector.
    unroll
        Vectors that one step of a loop handles.
    dtype
        Element type of the vectors in registers.
    """

    length: int
    lanes: int
    unroll: int
    dtype: str = "float32"

    @property
    def whole(self) -> int:
        """Number of whole vectors."""
        return self.length // self.lanes

    @property
    def slots(self) -> int:
        """Vectors that are handled side by side."""
        return min(self.unroll, max(1, self.whole))

    @property
    def rest(self) -> int:
        """Elements after the last whole vector."""
        return self.length % self.lanes

    def for_each_vector(self, visit: Callable[[Index, int], None]) -> None:
        """``visit(offset, slot)`` for each whole vector; ``slot`` counts vectors within a step and is a Python int."""
        steps, left = divmod(self.whole, self.unroll)
        if steps:
            with loop(steps) as step:
                for slot in range(self.unroll):
                    visit((step * self.unroll + slot) * self.lanes, slot)
        for slot in range(left):
            visit((steps * self.unroll + slot) * self.lanes, slot)

    def accumulate(self, sums: Accumulation, tile: RegisterTile, terms: Callable[[Index], Sequence[Expr]]) -> None:
        """Put the ``terms(offset)`` of each whole vector into the accumulators of ``tile``.

        Term ``i`` of a vector in slot ``s`` goes into accumulator ``i * slots + s``.
        """
        steps, left = divmod(self.whole, self.unroll)

        def add(step: Index, width: int, tile: RegisterTile) -> None:
            for slot in range(width):
                for index, term in enumerate(terms((step * self.unroll + slot) * self.lanes)):
                    sums.add(tile, index * self.slots + slot, term)

        if steps:
            sums.loop(steps, tile, lambda step, part: add(step, self.unroll, part))
        add(steps, left, tile)

    def load_rest(self, read: Callable[[Index, int], Expr], padding: float) -> Expr:
        """The elements after the last whole vector, as the lanes of one more vector; ``read(offset, lanes)`` loads.

        A row of at least one vector is read up to its end, overlapping what came before; a shorter one is padded.
        :meth:`fresh` tells which lanes hold elements that no whole vector held.
        """
        if self.whole:
            return in_register(read(self.length - self.lanes, self.lanes))
        scratch = T.alloc_buffer((self.lanes,), self.dtype)
        store(scratch, 0, constant(padding, self.lanes, self.dtype), self.lanes)
        for start, lanes in pieces(self.rest, self.lanes):
            store(scratch, start, read(start, lanes), lanes)
        return in_register(load(scratch, 0, self.lanes))

    def fresh(self, value: Expr, other: float) -> Expr:
        """``value`` in the lanes of the rest that hold new elements, ``other`` in those that overlap or pad."""
        lane = T.Ramp(0, 1, self.lanes)
        if self.whole:
            is_fresh = lane >= constant(self.lanes - self.rest, self.lanes, "int32")
        else:
            is_fresh = lane < constant(self.rest, self.lanes, "int32")
        return tirx.Select(is_fresh, value, constant(other, self.lanes, self.dtype))

    def store_rest(self, value: Expr, write: Callable[[Index, Expr], None]) -> None:
        """Hand the rest to ``write(offset, vector)``: overlapping lanes are written a second time, padding is not."""
        if self.whole:
            write(self.length - self.lanes, value)
            return
        value = in_register(value)
        for start, lanes in pieces(self.rest, self.lanes):
            write(start, lane_slice(value, start, lanes))


def check_rows(rows: int, cols: int, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse a row-wise spec that makes no sense.

    Raises
    ------
    ValueError
        If an extent is not positive, ``shape`` does not match, or the element type is not supported.
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"rows and cols must be positive, not {rows} and {cols}")
    if shape and (shape[-1] != cols or math.prod(shape) != rows * cols):
        raise ValueError(f"shape {shape} is not {rows} rows of {cols} elements")
    check_numbers(dtype)


def row_extents(spec: Spec) -> tuple[int, ...]:
    """Extents of the dimensions that count rows: those of the logical shape without its last, or just ``(rows,)``.

    There are none for the one row of a shape of rank 1.
    """
    return spec.shape[:-1] if spec.shape else (spec.rows,)


def flat_row(indices: Sequence[Index], extents: Sequence[int]) -> Index:
    """Number of the row with these coordinates."""
    flat: Index = 0
    for index, extent in zip(indices, extents, strict=True):
        flat = flat * extent + index
    return flat
