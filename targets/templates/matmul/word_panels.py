"""Copying an activation of 8-bit integers into panels of words, ahead of its use as the right-hand side of a product.

A word is four integers of one column, neighbours along the sums, as one int32: what one lane of
`tersor.targets.templates.vector.dot_product` multiplies. Panels are ``[panel][four of k][columns of the panel]``. The
integers become int8: those of uint8 have their highest bits flipped, which takes 128. What fills the last word up is
zero; columns past the last one hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, Index, offset_of
from ..parallelism import chunk_loop
from ..vector.builder import RegisterTile, bind, constant, load, loop, store, when
from ..vector.dot_product import SIGN_BITS, WORD, DotProduct
from ..vector.vectors import in_register, pieces, shuffle, transpose
from .pack import RhsPanels
from .spec import MatmulSpec

_SIGN_BIT = 0x80
_ONES = 0x01010101


def words_of(length: int) -> int:
    """Words that sums of ``length`` products take."""
    return -(-length // WORD)


@dataclass(frozen=True)
class WordPanels:
    """Packs the right-hand side of a product.

    Attributes
    ----------
    spec
        The product; its right-hand side is an activation of uint8 or int8.
    lanes
        Columns of one vector.
    vectors
        Vectors of one panel.
    """

    spec: MatmulSpec
    lanes: int
    vectors: int

    @property
    def columns(self) -> int:
        """Columns of one panel."""
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        """Number of panels; the last one may be partly empty."""
        return -(-self.spec.n // self.columns)

    @property
    def words(self) -> int:
        """Words of one column."""
        return words_of(self.spec.k)

    @property
    def offset(self) -> int:
        """What is added to the integers when they are packed."""
        return -128 if self.spec.dtype == "uint8" else 0

    def pack(self, source: Buffer, batch: Sequence[Index], chunk: Index = 0, chunks: int = 1) -> RhsPanels:
        """Copy the panels of one of ``chunks`` pieces of work to a scratch buffer of the thread."""
        stride = self.words * self.columns
        most = -(-self.panels // chunks)
        scratch = T.alloc_buffer((most * stride,), "int32", scope="global", align=64)
        first = chunk * self.panels // chunks
        base = bind(offset_of(self.spec.rhs_offset, batch, self.spec.rhs_strides))
        with chunk_loop(chunk, chunks, self.panels) as panel:
            self._pack_panel(_Panel(self, source, base, panel, scratch, bind((panel - first) * stride)))
        return RhsPanels(scratch, 0, stride, self.columns, first)

    def column_sums(self, panels: RhsPanels, products: DotProduct, chunk: Index = 0, chunks: int = 1) -> Buffer:
        """The sum of each packed column, in the order of the panels."""
        most = -(-self.panels // chunks)
        sums = T.alloc_buffer((most * self.columns,), "int32", scope="global", align=64)
        ones = products.prepare(constant(_ONES, self.lanes, "int32"))
        with chunk_loop(chunk, chunks, self.panels) as panel, loop(self.vectors) as vector:
            tile = RegisterTile(1, self.lanes, "int32")
            tile.fill(0)
            at = bind((panel - panels.first) * panels.panel_stride + vector * self.lanes)
            with loop(self.words) as word:
                right = products.right(load(panels.buffer, at + word * panels.k_stride, self.lanes))
                products.multiply_add(tile, 0, ones, right)
            to = (panel - panels.first) * self.columns + vector * self.lanes
            store(sums, to, tile[0], self.lanes)
        return sums

    def _pack_panel(self, panel: _Panel) -> None:
        *_, k_stride, column_stride = self.spec.rhs_strides
        write = panel.by_columns if k_stride == 1 else panel.by_rows if column_stride == 1 else panel.one_by_one
        rest = self.spec.n - (self.panels - 1) * self.columns
        is_whole = panel.number < self.panels - 1 if rest < self.columns else True
        when(is_whole, lambda: write(self.columns), lambda: write(rest))


@dataclass(frozen=True)
class _Panel:
    """One panel: its methods take the number of columns that exist."""

    made_by: WordPanels
    source: Buffer
    base: Index
    number: Index
    scratch: Buffer
    to: Index

    def by_columns(self, valid: int) -> None:
        """Integers lie side by side along the sums: squares of words are transposed in registers."""
        lanes, whole = self.made_by.lanes, self.made_by.spec.k // WORD
        runs = [run for run in pieces(whole % lanes, lanes) if run[1] > 1] if whole % lanes else []
        done = whole - whole % lanes + sum(width for _, width in runs)

        def squares(first: Index, present: int) -> None:
            if whole >= lanes:
                with loop(whole // lanes) as square:
                    self._square(first, present, square * lanes, lanes)
            for start, width in runs:
                self._square(first, present, whole - whole % lanes + start, width)

        if valid >= lanes:
            with loop(valid // lanes) as vector:
                squares(bind(vector * lanes), lanes)
        if valid % lanes:
            squares(valid - valid % lanes, valid % lanes)
        self._by_words(valid, done)

    def _square(self, column: Index, present: int, word: Index, width: int) -> None:
        """Words ``word`` … of the vector of columns from ``column`` on, of which some are present."""
        lanes, stride = self.made_by.lanes, self.made_by.spec.rhs_strides[-1]
        corner = bind(self._at(0, column) + word * WORD)
        kind = f"int32x{width}"
        rows = [
            in_register(tirx.reinterpret(kind, load(self.source, corner + index * stride, WORD * width)))
            for index in range(present)
        ]
        rows += [constant(0, width, "int32")] * (lanes - present)
        groups = range(0, lanes, width)
        if width < lanes:
            rows = [
                in_register(shuffle([rows[group + index] for group in groups], range(lanes))) for index in range(width)
            ]
        for index, vector in enumerate(transpose(rows)):
            self._store(word + index, column, vector, lanes)

    def by_rows(self, valid: int) -> None:
        """Columns lie side by side: four rows are interleaved."""
        whole, rest = divmod(self.made_by.spec.k, WORD)
        if whole:
            with loop(whole) as word:
                self._interleave(word, WORD, valid)
        if rest:
            self._interleave(whole, rest, valid)

    def _interleave(self, word: Index, rows: int, valid: int) -> None:
        row_stride = self.made_by.spec.rhs_strides[-2]
        dtype = self.made_by.spec.dtype
        filling = _SIGN_BIT if self.made_by.offset else 0
        for start, width in pieces(valid, self.made_by.lanes):
            corner = bind(self._at(word * WORD, start))
            parts = [load(self.source, corner + row * row_stride, width) for row in range(rows)]
            parts += [constant(filling, width, dtype)] * (WORD - rows)
            order = [row * width + column for column in range(width) for row in range(WORD)]
            kind = "int32" if width == 1 else f"int32x{width}"
            self._store(word, start, tirx.reinterpret(kind, shuffle(parts, order)), width)

    def one_by_one(self, valid: int) -> None:
        """For any strides."""
        self._by_words(valid, 0)

    def _by_words(self, valid: int, first: int) -> None:
        """Word by word from word ``first`` of each column on."""
        whole, rest = divmod(self.made_by.spec.k, WORD)
        if first == self.made_by.words:
            return
        with loop(valid) as column:
            if first < whole:
                with loop(whole, first) as word:
                    self._word(word, column, WORD)
            if rest:
                self._word(whole, column, rest)

    def _word(self, word: Index, column: Index, count: int) -> None:
        k_stride = self.made_by.spec.rhs_strides[-2]
        corner = bind(self._at(word * WORD, column))
        flip = _SIGN_BIT if self.made_by.offset else 0
        filling = sum(flip << 8 * byte for byte in range(count, WORD))
        made = join_bytes(lambda byte: self.source[corner + byte * k_stride], count) | tirx.const(filling, "uint32")
        self._store(word, column, tirx.reinterpret("int32", made), 1)

    def _at(self, k: Index, column: Index) -> Index:
        """Where an integer of this panel lies in the source."""
        *_, k_stride, column_stride = self.made_by.spec.rhs_strides
        return self.base + k * k_stride + (self.number * self.made_by.columns + column) * column_stride

    def _store(self, word: Index, column: Index, words: Expr, width: int) -> None:
        if self.made_by.offset:
            words = in_register(words) ^ constant(SIGN_BITS, width, "int32")
        store(self.scratch, self.to + word * self.made_by.columns + column, words, width)


def partial_word(buffer: Buffer, at: Index, count: int) -> Expr:
    """Fewer than four bytes of a buffer as a word, filled up with zeros: nothing behind them is read."""
    return tirx.reinterpret("int32", join_bytes(lambda byte: buffer[at + byte], count))


def join_bytes(byte_at: Callable[[int], Expr], count: int) -> Expr:
    """The first ``count`` bytes as an unsigned word whose other bytes are zero."""
    word = tirx.const(0, "uint32")
    for byte in range(count):
        value = tirx.Cast("uint32", tirx.reinterpret("uint8", byte_at(byte)))
        word = word | (value << tirx.const(8 * byte, "uint32"))
    return word
