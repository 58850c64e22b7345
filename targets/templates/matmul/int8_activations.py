"""Product of two activations of 8-bit integers, four of a row of ``a`` at a time, as in `int8`.

The right-hand side is packed at run time. With ``a' = a + u`` and ``b' = b + v``, the bytes as they are multiplied,

    sum (a - z) (b - w)  =  sum a' b'  -  (z + u) sum b'  -  (w + v) sum a'  +  k (z + u) (w + v)

so sums start from what a column contributes too much, and what a row contributes is added to them at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..vector.builder import Output, RegisterTile, broadcast, constant, load, loop, make_prim_func, store
from ..vector.dot_product import SIGN_BITS, WORD, DotProduct, dot_product
from ..vector.operand_types import is_integer
from ..vector.vectors import horizontal, in_register
from . import panels as matmul
from .pack import RhsPanels
from .panels import MatmulWriter, Weights
from .spec import ACTIVATION, MatmulKnobs, MatmulSpec
from .word_panels import WordPanels, partial_word, words_of

_ONES = 0x01010101
_HALF = 2**31


def supports(spec: MatmulSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``; elements of a row of ``a`` must lie side by side."""
    return is_integer(spec.dtype) and spec.rhs == ACTIVATION and spec.a_strides[-1] == 1


def candidates(spec: MatmulSpec, target: Cpu) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first: a word costs what one column does in float32."""
    spare = replace(target, vector_registers=target.vector_registers - dot_product(target, spec.dtype).extra_registers)
    in_words = MatmulSpec(spec.m, spec.n, words_of(spec.k), ACTIVATION, spec.batch)
    return list(dict.fromkeys(replace(knobs, pack_rhs=True) for knobs in matmul.candidates(in_words, spare)))


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, rhs, *epilogue buffers, out)``.

    The epilogue sees logical coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    inputs = (BufferSpec("a", spec.a_size, spec.dtype), BufferSpec("rhs", spec.rhs_size, spec.dtype))
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        _Writer(spec, target, knobs, buffers, out).write()

    return make_prim_func("matmul_int8_activations", inputs, output, body, epilogue)


class _Writer(MatmulWriter):
    """Sums products of words."""

    arithmetic: DotProduct
    column_sums: Buffer | None = None  # of this piece of the right-hand side
    first: Index = 0  # panel of it
    row_terms: Buffer | None = None  # what is added to the sums of each row of the tile

    def __init__(
        self, spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, inputs: Sequence[Buffer], out: Output
    ) -> None:
        super().__init__(spec, target, knobs, inputs, out)
        self.arithmetic = dot_product(target, spec.dtype)
        self.right = WordPanels(spec, self.lanes, knobs.vectors)
        self.left_zero = spec.zero_point + self.arithmetic.offset
        self.right_zero = spec.rhs_zero_point + self.right.offset
        self.steps = spec.k // WORD

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """This piece of the right-hand side, in words."""
        piece = (column_chunk, self.knobs.column_chunks)
        panels = self.right.pack(self.rhs, batch, *piece)
        self.first = panels.first
        if self.left_zero:
            self.column_sums = self.right.column_sums(panels, self.arithmetic, *piece)
        return panels

    def begin_rows(self, starts: Sequence[Index]) -> None:
        """Compute what is added to each row of the tiles to come."""
        if not self.right_zero:
            return
        self.row_terms = T.alloc_buffer((len(starts),), "int32")
        both = self.spec.k * self.left_zero * self.right_zero
        both = (both + _HALF) % (2 * _HALF) - _HALF  # as sums are, if they do not fit
        for row, start in enumerate(starts):
            total = self._row_sum(start) * tirx.const(-self.right_zero, "int32") + tirx.const(both, "int32")
            store(self.row_terms, row, total, 1)

    def _row_sum(self, start: Index) -> Expr:
        """The sum of the bytes of a row as they are multiplied."""
        products, lanes = self.arithmetic, self.lanes
        step = WORD * lanes
        whole, rest = divmod(self.spec.k, step)
        tile = RegisterTile(1, lanes, "int32")
        tile.fill(0)
        ones = products.right(constant(_ONES, lanes, "int32"))
        if whole:
            with loop(whole) as block:
                words = in_register(tirx.reinterpret(f"int32x{lanes}", load(self.a, start + block * step, step)))
                flipped = words ^ constant(SIGN_BITS, lanes, "int32") if products.offset else words
                products.multiply_add(tile, 0, products.prepare(flipped), ones)
        total = T.alloc_buffer((1,), "int32", layout=None)
        store(total, 0, horizontal(tile[0], lambda a, b: a + b), 1)
        if rest:
            with loop(rest) as index:
                byte = tirx.Cast("int32", self.a[start + whole * step + index])
                store(total, 0, total[0] + byte + tirx.const(products.offset, "int32"), 1)
        return total[0]

    def element(self, start: Index, step: Index) -> Expr:
        """Four bytes of a row."""
        return tirx.reinterpret("int32", load(self.a, start + step * WORD, WORD))

    def complete(self, tile: RegisterTile, starts: Sequence[Index], weights: Weights, panel: Index) -> None:
        """Add the products of the last, incomplete word, and what corrects the zero points."""
        lanes, products, vectors = self.lanes, self.arithmetic, self.knobs.vectors
        whole, rest = divmod(self.spec.k, WORD)
        right = [products.right(weights(whole, vector)) for vector in range(vectors)] if rest else []
        for row, start in enumerate(starts):
            for index, vector in enumerate(right, row * vectors):
                products.multiply_add(
                    tile, index, products.left(partial_word(self.a, start + whole * WORD, rest), lanes), vector
                )
        if self.column_sums is not None:
            at = (panel - self.first) * self.columns
            for vector in range(vectors):
                sums = load(self.column_sums, at + vector * lanes, lanes)
                excess = in_register(sums * constant(self.left_zero, lanes, "int32"))
                for index in range(vector, len(starts) * vectors, vectors):
                    tile[index] = tile[index] - excess
        if self.row_terms is not None:
            for row in range(len(starts)):
                term = in_register(broadcast(self.row_terms[row], lanes))
                for index in range(row * vectors, (row + 1) * vectors):
                    tile[index] = tile[index] + term
