"""Averages over windows of unequal sizes, in channel blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import te, tirx

from ..base import Expr
from .schedule import ANCHOR, Formula, LoopSpec


@dataclass(frozen=True)
class AdaptivePoolSpec(LoopSpec):
    """Averages over windows of unequal sizes: ``rows`` by ``columns`` results for each plane of ``h`` by ``w``.

    Window ``i`` of ``n`` reaches from ``floor(i * extent / n)`` to ``ceil((i + 1) * extent / n)``. Channels are stored
    in blocks of ``block``.
    """

    n: int
    c: int
    h: int
    w: int
    rows: int
    columns: int
    block: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.n, self.c, self.h, self.w, self.rows, self.columns, self.block) < 1:
            raise ValueError(f"every extent must be positive: {self}")
        if self.dtype != "float32":
            raise ValueError(f"dtype must be float32, not {self.dtype!r}")

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.c // self.block)

    @property
    def in_size(self) -> int:
        """Elements stored of the operand."""
        return self.n * self.blocks * self.h * self.w * self.block

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape as stored."""
        return (self.n, self.blocks, self.rows, self.columns, self.block)

    @property
    def macs(self) -> int:
        """Additions, the largest window's for each result."""
        taps = _largest_window(self.h, self.rows) * _largest_window(self.w, self.columns)
        return math.prod(self.out_shape) * taps

    def formula(self, data: te.Tensor) -> Formula:
        """Sums of the largest window, of which each takes what is its own, and their division by the windows' sizes."""
        tall = te.reduce_axis((0, _largest_window(self.h, self.rows)), "kh")
        wide = te.reduce_axis((0, _largest_window(self.w, self.columns)), "kw")

        def total(batch: Expr, block: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
            first, behind = _window(row, self.h, self.rows)
            left, beside = _window(column, self.w, self.columns)
            y, x = first + tall, left + wide
            inside = tirx.all(y < behind, x < beside)
            plane = (batch * self.blocks + block) * self.h + tirx.min(y, self.h - 1)
            offset = (plane * self.w + tirx.min(x, self.w - 1)) * self.block + lane
            return te.sum(tirx.Select(inside, data[offset], tirx.const(0, self.dtype)), [tall, wide])

        def mean(value: Expr, batch: Expr, block: Expr, row: Expr, column: Expr, lane: Expr) -> Expr:
            first, behind = _window(row, self.h, self.rows)
            left, beside = _window(column, self.w, self.columns)
            return value / tirx.Cast(self.dtype, (behind - first) * (beside - left))

        return te.compute(self.out_shape, total, ANCHOR), mean


def _window(index: Expr, extent: int, count: int) -> tuple[Expr, Expr]:
    """Where a window begins, and the first element behind it."""
    return index * extent // count, ((index + 1) * extent + count - 1) // count


def _largest_window(extent: int, count: int) -> int:
    return max(-(-(i + 1) * extent // count) - i * extent // count for i in range(count))
