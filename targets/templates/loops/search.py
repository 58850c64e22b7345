"""Binary search in sorted rows."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.ops import SearchOp
from ...machines.target import Cpu
from ..base import Buffer
from ..parallelism import shared_loop
from ..vector.builder import loop, store, when
from ..vector.vectors import in_register
from .formula import writes


@writes(SearchOp)
def search(op: SearchOp, target: Cpu, rows: Buffer, numbers: Buffer, y: Buffer) -> None:
    """Halve the interval that the place is in; a comparison with NaN goes to the right, as NaN is the largest."""
    extent, shape = op.rows.shape[-1], op.numbers.shape
    count = op.numbers.type.size if op.rows.type.rank == 1 else shape[-1]
    compare = tirx.GT if op.attrs.right else tirx.GE
    with shared_loop((op.numbers.type.size // count, count), bytes_moved=8 * op.cost().bytes) as (row, column):
        low, high = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
        number = in_register(numbers[row * count + column])
        store(low, 0, tirx.const(0, "int32"), 1)
        store(high, 0, tirx.const(extent, "int32"), 1)
        with loop(extent.bit_length()):
            middle = in_register((low[0] + high[0]) // 2)

            def left() -> None:
                store(high, 0, middle, 1)

            def right() -> None:
                store(low, 0, middle + 1, 1)

            when(low[0] < high[0], lambda: when(compare(rows[row * extent + middle], number), left, right))
        store(y, row * count + column, tirx.Cast("int64", low[0]), 1)
