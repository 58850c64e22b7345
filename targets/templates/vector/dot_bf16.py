"""Dot products of pairs of bfloat16 numbers in vector registers: AVX512_BF16's ``vdpbf16ps``.

One instruction does, in each of 16 lanes,

    sums += left[0] * right[0] + left[1] * right[1]

TVM's own bfloat16 is legalised away before code is generated, so numbers stay the bits that they are, and the
instruction is reached through a function in LLVM's language, which is inlined. It takes numbers that are too small to
be normal as zero, like AMX does.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, Index
from .amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE
from .arithmetic import Arithmetic
from .bfloat16 import bits_of
from .builder import RegisterTile, bind, broadcast, load, loop, store

FEATURE = "avx512_bf16"
LANES = 16
PAIR = 2
WORD = "int32"  # a pair
PAIRS = TILE_DEPTH // PAIR  # in a row of a panel
_REGISTERS = 32
_FUNCTION = "tersor_dot_bfloat16"
DOT_IR = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @{_FUNCTION}(<16 x float> %sums, <16 x i32> %left, <16 x i32> %right) alwaysinline {{
  %pairs = bitcast <16 x i32> %left to <32 x bfloat>
  %others = bitcast <16 x i32> %right to <32 x bfloat>
  %more = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %pairs, <32 x bfloat> %others)
  ret <16 x float> %more
}}
"""  # noqa: E501


def dot(sums: Expr, left: Expr, right: Expr) -> Expr:
    """``sums`` and the products of two vectors of pairs (words); the kernel must import `DOT_IR`."""
    return tirx.call_pure_extern(f"float32x{LANES}", _FUNCTION, sums, left, right)


def pair_at(buffer: Buffer, offset: Index) -> Expr:
    """The pair of numbers at an offset into a buffer of bits, in all lanes."""
    return broadcast(tirx.reinterpret(WORD, load(buffer, offset, PAIR)), LANES)


def pairs_at(buffer: Buffer, offset: Index) -> Expr:
    """A vector of pairs that lie one behind the other in a buffer of bits."""
    return tirx.reinterpret(f"{WORD}x{LANES}", load(buffer, offset, PAIR * LANES))


def as_words(buffer: Buffer, size: int) -> Buffer:
    """The pairs of a buffer of ``size`` numbers, each as one word."""
    return T.decl_buffer((size // PAIR,), WORD, data=T.Bind(T.address_of(bits_of(buffer)[0])))


class _PairProduct(Arithmetic):
    """Pairs of bfloat16 numbers; sums are float32."""

    packing = PAIR

    def multiply_add(self, tile: RegisterTile, index: int, left: Expr, right: Expr) -> None:
        tile[index] = dot(tile[index], left, right)


PAIR_PRODUCT = _PairProduct()


@dataclass(frozen=True)
class DotShape:
    """``rows`` positions by ``columns`` vectors of sums in registers: what `vector.amx.TileShape` is.

    Panels and packed weights are those of the matrix unit.
    """

    rows: int
    columns: int

    llvm_ir = DOT_IR  # what a kernel must import
    sum_type = "float32"

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.rows * self.columns + self.columns + 1 > _REGISTERS:
            raise ValueError(f"{self.rows} x {self.columns} vectors of sums and their operands do not fit {_REGISTERS}")

    @property
    def positions(self) -> int:
        """Rows of sums."""
        return self.rows

    @property
    def outputs(self) -> int:
        """Columns of sums."""
        return self.columns * LANES

    def begin(self) -> None:
        """Vector registers need no preparation."""

    def end(self) -> None:
        """Nor do they have to be handed back."""

    def tiles(self, pairs: int = PAIRS) -> DotTiles:
        """The sums of one tile in registers; only the first ``pairs`` of each row of 32 numbers are multiplied."""
        return DotTiles(self, pairs)


class DotTiles:
    """The sums of one `DotShape` in registers."""

    def __init__(self, shape: DotShape, pairs: int) -> None:
        self.shape = shape
        self._pairs = pairs
        self._sums = RegisterTile(shape.rows * shape.columns, LANES)

    def clear(self) -> None:
        """Set all sums to zero."""
        self._sums.fill(0.0)

    def multiply_add(self, left: Buffer, left_at: Index, right: Buffer, right_at: Index) -> None:
        """Add one step: rows of 32 numbers from ``left_at``; packed tiles one behind the other."""
        left_at, right_at = bind(left_at), bind(right_at)
        columns = self.shape.columns
        with loop(self._pairs) as pair:
            vectors = [
                bind(pairs_at(right, right_at + (column * TILE_SIZE + pair * (PAIR * LANES))))
                for column in range(columns)
            ]
            for row in range(self.shape.rows):
                value = bind(pair_at(left, left_at + (row * TILE_DEPTH + pair * PAIR)))
                for index, vector in enumerate(vectors, row * columns):
                    self._sums[index] = dot(self._sums[index], value, vector)

    def store(self, target: Buffer, first: Index = 0, row_stride: int = 0) -> None:
        """Write the sums as rows of ``outputs`` float32 numbers, from element ``first``; side by side by default."""
        for row in range(self.shape.rows):
            for column in range(self.shape.columns):
                at = first + (row * (row_stride or self.shape.outputs) + column * TILE_COLUMNS)
                store(target, at, self._sums[row * self.shape.columns + column], LANES)
