"""Sums of many terms that stay as exact as sums of few.

Each addition to one accumulator rounds at the size of the total, so a sum of n terms can be off by n roundings. Here
partial sums take `STAGE` terms each and are summed in stages themselves: about ``STAGE * log(n) / log(STAGE)``
roundings at worst, for a handful of additions more every `STAGE` terms. (N. J. Higham, "The accuracy of floating point
summation", SIAM J. Sci. Comput. 14, 1993.)
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..base import Expr, Index
from .builder import RegisterTile, loop

STAGE = 64  # terms of one partial sum


@dataclass(frozen=True)
class Accumulation:
    """How terms are put together, in tiles of accumulators: by default added, in float32.

    Attributes
    ----------
    combine
        Associative; of two vectors.
    neutral
        What it leaves unchanged.
    dtype
        Element type of the accumulators.
    """

    combine: Callable[[Expr, Expr], Expr] = operator.add
    neutral: float = 0
    dtype: str = "float32"

    def tile(self, count: int, lanes: int) -> RegisterTile:
        """Accumulators of nothing yet."""
        tile = RegisterTile(count, lanes, self.dtype)
        tile.fill(self.neutral)
        return tile

    def add(self, tile: RegisterTile, index: int, value: Expr) -> None:
        """Put one more term into an accumulator."""
        tile[index] = self.combine(tile[index], value)

    @contextlib.contextmanager
    def partial(self, total: RegisterTile) -> Iterator[RegisterTile]:
        """Accumulators of their own for the statements inside, which then go into those of ``total``."""
        part = self.tile(total.count, total.lanes)
        yield part
        for index in range(total.count):
            self.add(total, index, part[index])

    def loop(self, extent: int, total: RegisterTile, visit: Callable[[Index, RegisterTile], None]) -> None:
        """A loop of ``visit(index, tile)``, which adds one term to each accumulator of the tile that it is given."""
        stages, rest = divmod(extent, STAGE) if extent > STAGE else (0, extent)

        def stage(step: Index, tile: RegisterTile) -> None:
            with self.partial(tile) as part, loop(STAGE) as index:
                visit(step * STAGE + index, part)

        if stages:
            self.loop(stages, total, stage)
        if rest:
            with loop(rest) as index:
                visit(stages * STAGE + index, total)
