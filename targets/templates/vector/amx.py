"""Intel's matrix unit (AMX) for bfloat16: eight tile registers of 16 rows of 64 bytes, and their products.

One instruction adds to a tile of 16 x 16 float32 sums the product of 16 rows of 32 bfloat16 numbers and 32 x 16 more:

    sums[m, n] += left[m, 2k] * right[k, n, 0] + left[m, 2k + 1] * right[k, n, 1]        k = 0 … 15

The right-hand side holds pairs of rows side by side, which is how weights are packed (`pack_pairs`). See "Intel 64 and
IA-32 Architectures Optimization Reference Manual", chapter 20. A process must ask Linux for permission before its first
use of a tile: `tersor.targets.machines.catalog.host_features` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, Index
from .bfloat16 import BITS
from .builder import constant, store

FEATURE = "amx_bf16"
INTEGER_FEATURE = "amx_int8"
TILE_ROWS = 16
TILE_DEPTH = 32  # bfloat16 numbers in a row of a tile
TILE_COLUMNS = 16  # float32 sums in a row of a tile
TILE_SIZE = TILE_ROWS * TILE_DEPTH
_ROW_BYTES = 64
_REGISTERS = 8


class Sums(Protocol):
    """What scratch memory for sums follows from."""

    sum_type: str

    @property
    def positions(self) -> int: ...
    @property
    def outputs(self) -> int: ...


@dataclass(frozen=True)
class TileShape:
    """``rows`` by ``columns`` tiles of sums; each step loads so many tiles of the left and of the right operand."""

    rows: int
    columns: int

    llvm_ir = ""  # what a kernel must import
    instruction = "tdpbf16ps"
    sum_type = "float32"

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.rows * self.columns + self.rows + self.columns > _REGISTERS:
            raise ValueError(f"{self.rows} x {self.columns} tiles of sums and their operands do not fit {_REGISTERS}")

    @property
    def positions(self) -> int:
        """Rows of sums."""
        return self.rows * TILE_ROWS

    @property
    def outputs(self) -> int:
        """Columns of sums."""
        return self.columns * TILE_COLUMNS

    def begin(self) -> None:
        """Prepare the registers of this thread; goes with `end`, inside one iteration of a loop."""
        configure()

    def end(self) -> None:
        """Give the registers back."""
        release()

    def tiles(self, pairs: int = TILE_DEPTH // 2) -> SumTiles:
        """The sums of one tile in registers; all of a row is multiplied, be it more than ``pairs`` or not."""
        return SumTiles(self)


def configure() -> None:
    """Give every tile register of this thread its full size; goes with `release`, inside one iteration of a loop."""
    settings = T.alloc_buffer((_ROW_BYTES,), "uint8")
    palette, row_bytes_from, rows_from = 1, 16, 48
    store(settings, 0, constant(0, _ROW_BYTES, "uint8"), _ROW_BYTES)
    store(settings, 0, constant(palette, 1, "uint8"), 1)
    for register in range(_REGISTERS):
        store(settings, row_bytes_from + 2 * register, constant(_ROW_BYTES, 1, "uint8"), 1)
        store(settings, rows_from + register, constant(TILE_ROWS, 1, "uint8"), 1)
    _call("ldtilecfg", T.address_of(settings[0]))


def release() -> None:
    """Hand the tile registers back, which makes context switches cheap again."""
    _call("tilerelease")


@dataclass(frozen=True)
class UnsignedTileShape(TileShape):
    """Tiles of int32 sums; rows of 64 uint8 numbers on the left, quads of int8 numbers on the right."""

    instruction = "tdpbusd"
    sum_type = "int32"


@dataclass(frozen=True)
class SignedTileShape(UnsignedTileShape):
    """The same with int8 numbers on the left."""

    instruction = "tdpbssd"


class SumTiles:
    """The sums of one `TileShape` in registers, and the operands of one step."""

    def __init__(self, shape: TileShape) -> None:
        self.shape = shape
        sums = shape.rows * shape.columns
        self._left = range(sums, sums + shape.rows)
        self._right = range(sums + shape.rows, sums + shape.rows + shape.columns)

    def clear(self) -> None:
        """Set all sums to zero."""
        for register in range(self.shape.rows * self.shape.columns):
            _call("tilezero", _register(register))

    def start_from(self, table: Buffer, at: Index) -> None:
        """Set the sums of every row to the numbers of ``table`` from ``at`` on."""
        for row in range(self.shape.rows):
            for column in range(self.shape.columns):
                sums = row * self.shape.columns + column
                _transfer("tileloadd64", sums, table, at + column * TILE_COLUMNS, 0)

    def multiply_add(
        self, left: Buffer, left_at: Index, right: Buffer, right_at: Index, left_stride: int = TILE_DEPTH
    ) -> None:
        """Add one step: rows of 32 numbers, ``left_stride`` apart, from ``left_at``; packed tiles side by side."""
        for row, register in enumerate(self._left):
            at = left_at + row * TILE_ROWS * left_stride
            _transfer("tileloadd64", register, left, at, _ROW_BYTES * left_stride // TILE_DEPTH)
        for column, register in enumerate(self._right):
            _transfer("tileloadd64", register, right, right_at + column * TILE_SIZE, _ROW_BYTES)
        for row, left_register in enumerate(self._left):
            for column, right_register in enumerate(self._right):
                sums = row * self.shape.columns + column
                _call(self.shape.instruction, _register(sums), _register(left_register), _register(right_register))

    def store(self, target: Buffer, first: Index = 0, row_stride: int = 0) -> None:
        """Write the sums as rows of ``outputs`` float32 numbers, from element ``first``; side by side by default."""
        columns = row_stride or self.shape.outputs
        for row in range(self.shape.rows):
            for column in range(self.shape.columns):
                at = first + (row * TILE_ROWS * columns + column * TILE_COLUMNS)
                _transfer("tilestored64", row * self.shape.columns + column, target, at, 4 * columns)


def pack_pairs(matrix: torch.Tensor) -> torch.Tensor:
    """Tiles of the right-hand side: ``[..., depth, columns]`` to ``[..., depth / 32, columns / 16, 512]``.

    ``depth`` and ``columns`` are multiples of 32 and 16.
    """
    return _pack(matrix, 2)


def pack_quads(matrix: torch.Tensor) -> torch.Tensor:
    """The same for integers: ``[..., depth, columns]`` to ``[..., depth / 64, columns / 16, 1024]``."""
    return _pack(matrix, 4)


def _pack(matrix: torch.Tensor, group: int) -> torch.Tensor:
    *batch, depth, columns = matrix.shape
    depth, columns = depth // (group * TILE_ROWS), columns // TILE_COLUMNS
    split = matrix.reshape(*batch, depth, TILE_ROWS, group, columns, TILE_COLUMNS)
    order = (*range(len(batch)), *(len(batch) + axis for axis in (0, 3, 1, 4, 2)))
    return split.permute(order).reshape(*batch, depth, columns, TILE_ROWS * group * TILE_COLUMNS)


def panels(elements: int) -> Buffer:
    """Scratch memory of the thread for the left operand."""
    return scratch(elements, BITS)


def sums_buffer(shape: Sums) -> Buffer:
    """Scratch memory of the thread for one `TileShape` of sums."""
    return scratch(shape.positions * shape.outputs, shape.sum_type)


def scratch(elements: int, dtype: str) -> Buffer:
    """Memory of which tiles read and write more than the element whose address they are given.

    TVM and LLVM cannot see that, and cut an allocation down to what they do see. Hence a store to its last element.
    """
    buffer = T.alloc_buffer((elements,), dtype, scope="global", align=64)
    store(buffer, elements - 1, constant(0, 1, dtype), 1)
    return buffer


def _transfer(instruction: str, register: int, buffer: Buffer, at: Index, row_bytes: int) -> None:
    _call(instruction, _register(register), T.address_of(buffer[at]), tirx.IntImm("int64", row_bytes))


def _register(number: int) -> Expr:
    return tirx.IntImm("int8", number)


def _call(instruction: str, *arguments: Expr) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{instruction}", *arguments))
