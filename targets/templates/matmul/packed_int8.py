"""Linear layers of 8-bit integers with weights of 4 or 8 bits and a scale for each group of inputs.

The weight is read as `tersor.targets.templates.matmul.packed` describes. Two masks and a shift make two words of bytes
of one word of 4-bit integers, which go to the instruction for four products (`dot_product`). The sums of a group are
exact. They are corrected for the zero point, rounded to float32, multiplied by the scales and added up, in this order
and each rounded, so that the result is that of the interpreter bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Expr, Index
from ..vector.builder import Output, RegisterTile, constant, load, loop
from ..vector.dot_product import WORD, dot_product
from ..vector.integers import as_float32, rounded
from ..vector.operand_types import is_integer
from .packed import PackedSpec, PackedWriter, build_with, pack_weight, packed_candidates
from .spec import MatmulKnobs

__all__ = ["PackedSpec", "build", "candidates", "pack_weight", "supports"]

_LOWER_HALVES = 0x0F0F0F0F  # of the bytes of a word
_HALF = 4  # bits
_FLIPPED = 8  # has been added to integers of 4 bits
_BYTE_VALUES = 256


def supports(spec: PackedSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype)


def candidates(spec: PackedSpec, target: Cpu) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first."""
    return packed_candidates(spec, target, 3, 2 + dot_product(target, spec.dtype, spec.bits).extra_registers)


def build(spec: PackedSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``; the epilogue is given float32 numbers."""
    return build_with(PackedInt8Writer, "matmul_packed_int8", spec, target, knobs, epilogue)


class PackedInt8Writer(PackedWriter):
    """Sums products of bytes."""

    def __init__(
        self, spec: PackedSpec, target: Cpu, knobs: MatmulKnobs, inputs: Sequence[Buffer], out: Output
    ) -> None:
        super().__init__(spec, target, knobs, inputs, out)
        self.products = dot_product(target, spec.dtype, spec.bits)

    def group_sums(self, starts: Sequence[Index], first: Index, place: Index, words: int) -> RegisterTile:
        """Exact sums over one group, as float32 numbers."""
        spec, vectors, lanes, products = self.packed, self.knobs.vectors, self.lanes, self.products
        tile = RegisterTile(len(starts) * vectors, lanes, products.sum_type)
        tile.fill(0)
        zeros = self._zeros()
        shift = RegisterTile(vectors if zeros is not None else 0, lanes, products.sum_type)
        shift.fill(0)
        with loop(words) as word:
            loaded = [self.load_word(place, word, vector) for vector in range(vectors)]
            for part in range(spec.word // WORD):
                right = [products.right(self._bytes(vector, part)) for vector in loaded]
                if zeros is not None:
                    left = products.left(zeros, lanes)
                    for vector in range(vectors):
                        products.multiply_add(shift, vector, left, right[vector])
                for row, start in enumerate(starts):
                    at = start + first + word * spec.word + part * WORD
                    left = products.left(tirx.reinterpret("int32", load(self.a, at, WORD)), lanes)
                    for vector in range(vectors):
                        products.multiply_add(tile, row * vectors + vector, left, right[vector])
        numbers = RegisterTile(tile.count, lanes)
        for index in range(tile.count):
            sums = tile[index] if zeros is None else tile[index] - shift[index % vectors]
            numbers[index] = as_float32(sums)
        return numbers

    def scaled(self, total: Expr, part: Expr, scale: Expr) -> Expr:
        """``total + part * scale``, the product rounded and the sum too."""
        return rounded(total + rounded(part * scale))

    def _zeros(self) -> Expr | None:
        """A word of bytes that stand for zero in ``a``; None where these are multiplied as zeros."""
        zero = self.packed.zero_point
        if not zero + self.products.offset:
            return None
        word = int.from_bytes(bytes([zero % _BYTE_VALUES] * WORD), "little", signed=True)
        return tirx.const(word, "int32")

    def _bytes(self, words: Expr, part: int) -> Expr:
        """Four neighbouring integers of each column, as the bytes of a word: the first four of it, or the others."""
        if self.packed.word == WORD:
            return words
        lanes, count = self.lanes, WORD * self.lanes
        moved = words >> constant(_HALF, lanes, "int32") if part else words
        numbers = tirx.reinterpret(f"int8x{count}", moved & constant(_LOWER_HALVES, lanes, "int32"))
        return tirx.reinterpret(f"int32x{lanes}", numbers - constant(_FLIPPED, count, "int8"))
