"""Classes of positions by which taps read padding, and what integer sums start from in each.

The table is [row class, column class, output]: see `tersor.targets.templates.vector.compensation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tvm import tirx

from ..base import Index
from ..windows.spatial import Window


@dataclass(frozen=True)
class BorderClasses:
    """Positions of one axis by the taps that read padding: ``leading`` classes, the interior, ``trailing`` ones."""

    window: Window

    @property
    def leading(self) -> int:
        """Positions before the first one of which all taps lie inside the input, or all positions."""
        return next((position for position in range(self.window.out) if self._is_inside(position)), self.window.out)

    @property
    def last_inside(self) -> int:
        """The last position of which all taps lie inside the input; where there is none, the last position."""
        inside = (position for position in reversed(range(self.window.out)) if self._is_inside(position))
        return next(inside, self.window.out - 1)

    @property
    def representatives(self) -> list[int]:
        """One position of each class."""
        interior = [] if self.leading == self.window.out else [self.leading]
        return [*range(self.leading), *interior, *range(self.last_inside + 1, self.window.out)]

    def of(self, position: Index) -> Index:
        """The class of a position, which may be an expression."""
        if len(self.representatives) == 1:
            return 0
        if isinstance(position, int):
            return min(position, self.leading) + max(position - self.last_inside, 0)
        return tirx.min(position, self.leading) + tirx.max(position - self.last_inside, 0)

    def _is_inside(self, position: int) -> bool:
        return self.window.reads(position, 0) and self.window.reads(position, self.window.kernel - 1)

    def taps(self, position: int) -> torch.Tensor:
        """1 for taps that read the input, 0 for those that read padding."""
        return torch.tensor([self.window.reads(position, tap) for tap in range(self.window.kernel)], dtype=torch.int64)


def border_table(
    weight: torch.Tensor, zero: int, rows: BorderClasses, columns: BorderClasses, outputs: int
) -> torch.Tensor:
    """The table [row class, column class, ``outputs``] of a weight (o, c, kh, kw), in int32; zero past the last output.

    Parameters
    ----------
    zero
        What stands for zero in the bytes that are multiplied: the zero point plus the instruction's offset.
    """
    by_tap = weight.to(torch.int64).sum(1)  # o, kh, kw
    height = torch.stack([rows.taps(position) for position in rows.representatives])
    width = torch.stack([columns.taps(position) for position in columns.representatives])
    table = torch.zeros(len(height), len(width), outputs, dtype=torch.int64)
    table[..., : len(weight)] = -zero * torch.einsum("okl,rk,cl->rco", by_tap, height, width)
    return table.to(torch.int32)
