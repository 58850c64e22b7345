"""Sorting along an axis: by ranks, by insertion, or by digits.

Elements become unsigned integers of the same order, so that NaN, signs and both directions are no cases any more. Of a
few elements, each one's rank is counted. For a few wanted ones out of many, a sorted list of the best so far is kept.
Else the integers are sorted by eight bits at a time, the lowest first (Knuth, volume 3, 5.2.5), which is stable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import ArgSortOp, SortOp
from ...machines.target import Cpu
from ..base import Buffer, Expr, Index
from ..parallelism import shared_loop
from ..vector.builder import load, loop, store, when
from ..vector.vectors import horizontal, in_register
from .columns import split_at
from .formula import writes
from .keys import order_key

_MOST_RANKED = 64  # elements whose ranks are counted, in quadratic time
_MOST_INSERTED = 256  # wanted elements that a list is kept of
_INSERTION_GAIN = 8  # how many times as many there must be
_VECTORS = 4  # that are looked at together, for an element that belongs into the list
_DIGITS, _BITS = 256, 8


@writes(SortOp, ArgSortOp)
def sort(op: SortOp, target: Cpu, x: Buffer, y: Buffer) -> None:
    """One row after another; threads share the rows."""
    outer, extent, inner = split_at(op.x.shape, op.attrs.axis)
    count, bits = op.attrs.count, 64 if op.x.type.dtype.itemsize == 8 else 32
    with shared_loop((outer, inner), bytes_moved=16 * op.cost().bytes) as (row, column):

        def read(place: Index, width: int = 1) -> Expr:
            return load(x, (row * extent + place) * inner + column, width)

        def key(place: Index, width: int = 1) -> Expr:
            return order_key(read(place, width), bits, op.attrs.descending)

        def write(rank: Index, place: Expr) -> None:
            value = tirx.Cast("int64", place) if isinstance(op, ArgSortOp) else read(place)
            store(y, (row * count + rank) * inner + column, value, 1)

        line = _Row(extent, count, bits, target.lanes(bits // 8) if inner == 1 else 1, key, write)
        if extent <= _MOST_RANKED:
            line.by_ranks()
        elif _INSERTION_GAIN * count <= extent and count <= _MOST_INSERTED:
            line.by_insertion()
        else:
            line.by_digits()


@dataclass(frozen=True)
class _Row:
    """``key(place, lanes)`` reads keys of ``bits`` bits, ``write(rank, place)`` gets the first ``count`` places.

    ``lanes`` is 1 where the elements do not lie beside each other.
    """

    extent: int
    count: int
    bits: int
    lanes: int
    key: Callable[..., Expr]
    write: Callable[[Index, Expr], None]

    def _keys(self, count: int) -> Buffer:
        return T.alloc_buffer((count,), f"uint{self.bits}")

    def by_ranks(self) -> None:
        """Place ``i`` has as many before it as are smaller, or equal and further in front."""
        keys, rank = self._keys(self.extent), T.alloc_buffer((1,), "int32")
        with loop(self.extent) as place:
            store(keys, place, self.key(place), 1)
        with loop(self.extent) as place:
            store(rank, 0, tirx.const(0, "int32"), 1)
            own = in_register(keys[place])
            with loop(self.extent) as other:
                before = tirx.Or(keys[other] < own, tirx.And(tirx.EQ(keys[other], own), tirx.LT(other, place)))
                store(rank, 0, rank[0] + tirx.Cast("int32", before), 1)
            when(rank[0] < self.count, partial(self.write, rank[0], tirx.Cast("int32", place)))

    def by_insertion(self) -> None:
        """A sorted list of the first elements, into which a better one is put while the last one drops out."""
        keys, places, position = self._keys(self.count), _integers(self.count), _integers(1)

        def insert(key: Expr, place: Index, filled: Index) -> None:
            store(position, 0, filled, 1)
            with loop(filled) as step:
                before = in_register(filled - 1 - step)

                def move() -> None:
                    store(keys, before + 1, keys[before], 1)
                    store(places, before + 1, places[before], 1)
                    store(position, 0, before, 1)

                when(keys[before] > key, move)
            store(keys, position[0], key, 1)
            store(places, position[0], tirx.Cast("int32", place), 1)

        def insert_better(first: Index, count: Index) -> None:
            with loop(count) as step:
                key = self.key(first + step)
                is_better = key < keys[self.count - 1]
                when(is_better, partial(insert, key, first + step, tirx.const(self.count - 1, "int32")))

        with loop(self.count) as place:
            insert(self.key(place), place, place)
        block = _VECTORS * self.lanes
        blocks = (self.extent - self.count) // block if self.lanes > 1 else 0
        with loop(blocks) as index:  # most have nothing better, which a few vector instructions tell
            first = self.count + index * block
            vectors = [self.key(first + vector * self.lanes, self.lanes) for vector in range(_VECTORS)]
            least = horizontal(reduce(tirx.Min, vectors), tirx.Min)
            when(least < keys[self.count - 1], partial(insert_better, first, block))
        insert_better(self.count + blocks * block, self.extent - self.count - blocks * block)
        with loop(self.count) as rank:
            self.write(rank, in_register(places[rank]))

    def by_digits(self) -> None:
        """From one buffer to the other and back, sorted by one more digit each time."""
        source, other = ((self._keys(self.extent), _integers(self.extent)) for _ in range(2))
        rounds = self.bits // _BITS
        starts = _integers(rounds * _DIGITS)
        with loop(rounds * _DIGITS) as digit:
            store(starts, digit, tirx.const(0, "int32"), 1)
        with loop(self.extent) as place:
            key = self.key(place)
            store(source[0], place, key, 1)
            store(source[1], place, tirx.Cast("int32", place), 1)
            for turn in range(rounds):
                digit = in_register(self._digit(key, turn))
                store(starts, digit, starts[digit] + 1, 1)
        for turn in range(rounds):
            self._starts_from_counts(starts, turn)
            with loop(self.extent) as place:
                key = in_register(source[0][place])
                digit = in_register(self._digit(key, turn))
                to = in_register(starts[digit])
                store(starts, digit, to + 1, 1)
                store(other[0], to, key, 1)
                store(other[1], to, source[1][place], 1)
            source, other = other, source
        with loop(self.count) as rank:
            self.write(rank, in_register(source[1][rank]))

    def _digit(self, key: Expr, turn: int) -> Expr:
        """Where the count of a key's digit is."""
        unsigned = f"uint{self.bits}"
        digit = (key >> tirx.const(turn * _BITS, unsigned)) & tirx.const(_DIGITS - 1, unsigned)
        return tirx.Cast("int32", digit) + turn * _DIGITS

    @staticmethod
    def _starts_from_counts(starts: Buffer, turn: int) -> None:
        total = _integers(1)
        store(total, 0, tirx.const(0, "int32"), 1)
        with loop((turn + 1) * _DIGITS, turn * _DIGITS) as digit:
            count = in_register(starts[digit])
            store(starts, digit, total[0], 1)
            store(total, 0, total[0] + count, 1)


def _integers(count: int) -> Buffer:
    return T.alloc_buffer((count,), "int32")
