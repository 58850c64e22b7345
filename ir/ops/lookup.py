"""Functions of 8-bit integers as tables of 256 entries."""

from __future__ import annotations

import torch

from ..core import Op, Operand
from ..traits import Storage
from ..types import TensorType
from .integers import QUANTIZED, integer_range

ENTRIES = 256  # the integers of 8 bits


class LookupOp(Op, name="lookup"):
    """``table[x - smallest]`` for x of u8 or i8, ``smallest`` being the smallest number of that type.

    The table [256] is of u8 or i8: the results for all integers in ascending order.
    """

    x = Operand()
    table = Operand()
    elementwise = True
    whole_operands = (1,)
    always_finite = True
    default_storage = Storage.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        x, table = self.x.type, self.table.type
        if x.dtype not in QUANTIZED or table.dtype not in QUANTIZED:
            raise self.error(f"needs a u8 or i8 operand and a table of u8 or i8, got {x} and {table}")
        if table.shape != (ENTRIES,):
            raise self.error(f"the table must be [{ENTRIES}], an entry for each integer of 8 bits, got {table}")
        return (x.with_dtype(table.dtype),)

    def evaluate(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return table[x.to(torch.int64) - integer_range(self.x.type.dtype)[0]]
