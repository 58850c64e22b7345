"""What integer sums start from, so that they come out as sums over ``(x - zero_point) * w``.

Kernels multiply the bytes as they are (plus `DotProduct.offset`): every tap that reads the input contributes
``(zero_point + offset) * w`` too much. That depends on the weights only, and on which taps read padding, so it is
computed when weights are packed: a table [row class, column class, output], where positions are of one class if the
same taps of theirs read padding. The table's bytes follow the weights in one constant.
"""

from __future__ import annotations

import torch
from tvm.tirx.script.builder import ir as T

from ..base import Buffer

_ALIGNMENT = 64  # bytes
_SUM_BYTES = 4


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
