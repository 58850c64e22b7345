"""Walks along one axis of a row-major tensor, many columns at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...machines.target import Cpu
from ..base import Index
from ..parallelism import shared_loop
from ..vector.builder import when
from ..vector.vectors import pieces


def split_at(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Elements before an axis, along it and behind it."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def for_each_column(
    outer: int, inner: int, lanes: int, bytes_moved: int, visit: Callable[[Index, Index, int], None]
) -> None:
    """``visit(row, column, width)``: ``width`` columns beside each other of row ``row``; threads share them."""

    def rest(row: Index) -> None:
        for first, width in pieces(inner % lanes, lanes):
            visit(row, inner // lanes * lanes + first, width)

    runs = inner // lanes
    with shared_loop((outer, max(runs, 1)), bytes_moved=bytes_moved) as (row, run):
        if runs:
            visit(row, run * lanes, lanes)
        if inner % lanes:
            when(run == 0, lambda: rest(row))


def lanes_for(itemsize: int, target: Cpu) -> int:
    """Columns at once, where a position of 32 bits goes with each."""
    return target.lanes(max(4, itemsize))
