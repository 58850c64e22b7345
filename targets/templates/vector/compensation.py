"""What integer sums start from, so that they come out as sums over ``(x - zero_point) * w``.

Kernels multiply the bytes as they are (plus `DotProduct.offset`): every tap that reads the input contributes
``(zero_point + offset) * w`` too much. That depends on the weights only, and on which taps read padding, so it is
computed when weights are packed: a table [row class, column class, output], where positions are of one class if the
same taps of theirs read padding. The table's bytes follow the weights in one constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Index
from ..windows.spatial import Window

_ALIGNMENT = 64  # bytes
_SUM_BYTES = 4


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


def uniform_table(weight: torch.Tensor, zero: int, outputs: int) -> torch.Tensor:
    """The table of a kernel that reads ``zero`` as padding: one number for each output of a weight (o, ...)."""
    table = torch.zeros(outputs, dtype=torch.int64)
    table[: len(weight)] = -zero * weight.to(torch.int64).flatten(1).sum(1)
    return table.to(torch.int32)


def append_table(packed: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Packed int8 weights, a gap up to a multiple of 64 bytes, and the bytes of a table of int32."""
    gap = packed.new_zeros(table_offset(packed.numel()) - packed.numel())
    return torch.cat([packed, gap, table.contiguous().reshape(-1).view(torch.int8)])


def table_offset(weight_bytes: int) -> int:
    """Where the table begins."""
    return -(-weight_bytes // _ALIGNMENT) * _ALIGNMENT


def packed_bytes(weight_bytes: int, table_size: int) -> int:
    """Size of weights and table together."""
    return table_offset(weight_bytes) + _SUM_BYTES * table_size if table_size else weight_bytes


def view_table(constant: Buffer, weight_bytes: int, size: int) -> Buffer:
    """The table of ``size`` numbers in the constant that `append_table` made, as a flat buffer of int32."""
    return view_as(constant, "int32", size, table_offset(weight_bytes))


def view_as(buffer: Buffer, dtype: str, size: int, first: int = 0) -> Buffer:
    """Memory of a buffer of bytes, from byte ``first`` on, as a buffer of ``size`` elements of another type."""
    return T.decl_buffer((size,), dtype, data=T.Bind(T.address_of(buffer[first])))
