"""The innermost part of every matrix product: one register tile summed over ``k``."""

from __future__ import annotations

from collections.abc import Callable

from ..base import Expr, Index
from ..vector.arithmetic import FLOAT32, Arithmetic
from ..vector.builder import RegisterTile, loop
from ..vector.vectors import in_register


def accumulate(
    rows: int,
    vectors: int,
    lanes: int,
    steps: int,
    element: Callable[[int, Index], Expr],
    vector_at: Callable[[Index, int], Expr],
    *,
    unroll: int = 1,
    chains: int = 1,
    before_step: Callable[[Index], None] | None = None,
    arithmetic: Arithmetic = FLOAT32,
    initial: Callable[[int], Expr] | None = None,
) -> RegisterTile:
    """Sums ``tile[row * vectors + v] = sum_k element(row, k) * vector_at(k, v)`` in registers.

    Parameters
    ----------
    rows, vectors, lanes
        Shape of the tile.
    steps
        Extent of ``k``.
    element
        The scalar of the left operand, read for each row and step and broadcast.
    vector_at
        A vector of the right operand, read once for each step.
    unroll, chains
        Steps written out in the loop, and independent sums for each result, added up at the end.
    before_step
        Emits what else a step does, a prefetch for example.
    arithmetic
        What elements are, and how they are multiplied.
    initial
        What the sums of each vector of columns start from; 0 by default.
    """
    tile = RegisterTile(rows * vectors * chains, lanes, arithmetic.sum_type)
    tile.fill(0)
    if initial is not None:
        starts = [in_register(initial(vector)) for vector in range(vectors)]
        for index in range(rows * vectors):
            tile[index] = starts[index % vectors]

    def step(k: Index, chain: int) -> None:
        if before_step is not None:
            before_step(k)
        right = [arithmetic.right(vector_at(k, vector)) for vector in range(vectors)]
        for row in range(rows):
            left = arithmetic.left(element(row, k), lanes)
            for vector in range(vectors):
                arithmetic.multiply_add(tile, (chain * rows + row) * vectors + vector, left, right[vector])

    unroll = max(unroll, chains)
    whole = steps // unroll
    if whole:
        with loop(whole) as block:
            for inner in range(unroll):
                step(block * unroll + inner, inner % chains)
    for k in range(whole * unroll, steps):
        step(k, k % chains)
    for chain in range(1, chains):
        for index in range(rows * vectors):
            tile[index] = tile[index] + tile[chain * rows * vectors + index]
    return tile
