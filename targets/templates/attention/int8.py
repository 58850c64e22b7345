"""Scaled dot-product attention on 8-bit integers: both products sum bytes four at a time, see `AttentionOp`.

    for unit in parallel(head, piece of the queries):
        panels of words of the keys and of the values
        for tile of queries:
            sums = (queries - zero) @ keys transposed                          int32
            for row: weights = round(255 * exp(scale * sums + mask - peak))    uint8; their sum
            out = (weights @ (values - zero)) * (1 / sum of the weights)

A key's zero point would add the same number to all scores of a query, which softmax takes back, so keys have none. The
zero point of the values comes in times the sum of the weights, which is known anyway. All operands are read and written
in place through strides, so that splitting and merging heads costs nothing. Every float32 operation is rounded by
itself, so that the weights are the same integers wherever they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt, offset_of
from ..matmul.pack import RhsPanels
from ..matmul.tile import accumulate
from ..matmul.word_panels import WordPanels, partial_word, words_of
from ..parallelism import chunk_loop, even_tile, shared_loop
from ..rows.row_vectors import RowVectors
from ..rows.shares import write_shares
from ..vector.builder import Output, RegisterTile, bind, broadcast, constant, load, loop, make_prim_func, store, when
from ..vector.dot_product import WORD, DotProduct, dot_product
from ..vector.integers import as_float32, rounded
from ..vector.operand_types import is_integer
from ..vector.vectors import cast, in_register, lanes_of, pieces
from . import spec as attention_spec
from .spec import AttentionKnobs, AttentionSpec

__all__ = ["AttentionKnobs", "AttentionSpec", "build", "candidates", "supports"]

WEIGHTS = "uint8"
_Words = Callable[[int, Index], Expr]  # one word of a row of the left-hand side


def supports(spec: AttentionSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``; elements of a query must lie side by side."""
    return is_integer(spec.dtype) and spec.scores.a_strides[-1] == 1


def candidates(spec: AttentionSpec, target: Cpu) -> list[AttentionKnobs]:
    """Feasible knobs, best analytic guess first."""
    extra = max(dot_product(target, dtype).extra_registers for dtype in (spec.dtype, WEIGHTS))
    return attention_spec.candidates(spec, replace(target, vector_registers=target.vector_registers - extra))


def build(
    spec: AttentionSpec,
    target: Cpu,
    knobs: AttentionKnobs,
    epilogue: Epilogue = NO_EPILOGUE,
    mask: Epilogue = NO_EPILOGUE,
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(query, key, value, *mask buffers, *epilogue buffers, out)``.

    ``mask`` and ``epilogue`` are those of `tersor.targets.templates.attention.float32.build`.
    """
    inputs = (
        BufferSpec("query", spec.query_size, spec.dtype),
        BufferSpec("key", spec.key_size, spec.dtype),
        BufferSpec("value", spec.value_size, spec.dtype),
    )
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        _Writer(spec, target, knobs, buffers, mask, out).write()

    return make_prim_func("attention_int8", (*inputs, *mask.buffers), output, body, epilogue)


@dataclass(frozen=True)
class _Operand:
    """A right-hand side as panels, and what the sums over its columns start from."""

    panels: RhsPanels
    starts: Buffer | None


class _Writer:
    """Writes the loops of one attention; methods go from the outermost loop inwards."""

    def __init__(
        self,
        spec: AttentionSpec,
        target: Cpu,
        knobs: AttentionKnobs,
        buffers: Sequence[Buffer],
        mask: Epilogue,
        out: Output,
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.query, self.key, self.value, *self.mask_buffers = buffers
        self.mask = mask
        self.out = out
        self.lanes = target.lanes()
        self.keys = WordPanels(spec.scores, self.lanes, knobs.vectors)
        self.values = WordPanels(spec.context, self.lanes, knobs.vectors)
        self.of_queries = dot_product(target, spec.dtype)
        self.of_weights = dot_product(target, WEIGHTS)
        # A multiple of 4 KiB apart, rows would compete for the same lines of L1.
        self.score_stride = self.keys.panels * self.keys.columns + self.lanes
        self.weight_stride = WORD * words_of(spec.keys)

    def write(self) -> None:
        spec, knobs = self.spec, self.knobs
        tiles = -(-spec.queries // knobs.rows)
        with shared_loop((*spec.batch, knobs.row_chunks), macs=spec.macs) as (*batch, row_chunk):
            keys = self._packed(self.keys, self.key, batch, self.of_queries, spec.query_zero)
            values = self._packed(self.values, self.value, batch, self.of_weights, 0)
            sums = T.alloc_buffer((knobs.rows * self.score_stride,), "int32", align=64)
            weights = T.alloc_buffer((knobs.rows * self.weight_stride,), WEIGHTS, align=64)
            totals = T.alloc_buffer((knobs.rows,), "int32")
            self._fill_up(weights)

            def row_tile(rows: int, first: Index) -> None:
                self._write_scores(batch, rows, first, keys, sums)
                with loop(rows) as row:
                    self._write_weights(batch, first, row, sums, weights, totals)
                self._write_context(batch, rows, first, values, weights, totals)

            with chunk_loop(row_chunk, knobs.row_chunks, tiles) as tile:
                even_tile(tile, tiles, spec.queries, row_tile)

    def _packed(
        self, side: WordPanels, source: Buffer, batch: Sequence[Index], products: DotProduct, zero_point: int
    ) -> _Operand:
        """Sums over ``a - zero_point`` start from what the bytes as they are multiplied contribute too much."""
        panels = side.pack(source, batch)
        zero = zero_point + products.offset
        if not zero:
            return _Operand(panels, None)
        starts = side.column_sums(panels, products)
        with loop(side.panels * side.vectors) as vector:
            at = vector * self.lanes
            store(starts, at, load(starts, at, self.lanes) * constant(-zero, self.lanes, "int32"), self.lanes)
        return _Operand(panels, starts)

    def _fill_up(self, weights: Buffer) -> None:
        """What fills the last word of a row of weights up is zero."""
        keys = self.spec.keys
        if self.weight_stride > keys:
            with loop(self.knobs.rows) as row:
                for start, lanes in pieces(self.weight_stride - keys, WORD):
                    store(weights, row * self.weight_stride + keys + start, constant(0, lanes, WEIGHTS), lanes)

    def _write_scores(self, batch: Sequence[Index], rows: int, first: Index, keys: _Operand, sums: Buffer) -> None:
        strides = self.spec.scores.a_strides
        base = bind(offset_of(self.spec.query_offset, batch, strides) + first * strides[-2])

        def word(row: int, step: Index) -> Expr:
            at = base + row * strides[-2] + step * WORD
            if isinstance(step, int) and (count := min(WORD, self.spec.width - step * WORD)) < WORD:
                return partial_word(self.query, at, count)
            return tirx.reinterpret("int32", load(self.query, at, WORD))

        with loop(self.keys.panels) as panel:
            tile = self._accumulate(rows, self.spec.width, word, keys, panel, self.of_queries)
            for index in range(rows * self.knobs.vectors):
                row, vector = divmod(index, self.knobs.vectors)
                at = row * self.score_stride + panel * self.keys.columns + vector * self.lanes
                store(sums, at, tile[index], self.lanes)

    def _write_weights(
        self, batch: Sequence[Index], first: Index, row: Index, sums: Buffer, weights: Buffer, totals: Buffer
    ) -> None:
        base, to = row * self.score_stride, row * self.weight_stride
        vectors = RowVectors(self.spec.keys, self.lanes, unroll=4)

        def read(offset: Index, lanes: int) -> Expr:
            number = as_float32(load(sums, base + offset, lanes))
            score = rounded(number * constant(self.spec.scale, lanes))
            at = VectorAt((*batch, first + row, offset), len(batch) + 1, lanes, base + offset)
            return self.mask.apply(score, at, self.mask_buffers)

        def write(offset: Index, value: Expr) -> None:
            store(weights, to + offset, cast(value, WEIGHTS), lanes_of(value))

        store(totals, row, write_shares(vectors, read, write), 1)

    def _write_context(
        self, batch: Sequence[Index], rows: int, first: Index, values: _Operand, weights: Buffer, totals: Buffer
    ) -> None:
        columns, panels = self.values.columns, self.values.panels
        rest = self.spec.value_width - (panels - 1) * columns
        staging = T.alloc_buffer((rows * columns,), "int32", align=64)

        def word(row: int, step: Index) -> Expr:
            return tirx.reinterpret("int32", load(weights, row * self.weight_stride + step * WORD, WORD))

        with loop(panels) as panel:
            tile = self._accumulate(rows, self.spec.keys, word, values, panel, self.of_weights)
            for index in range(rows * self.knobs.vectors):
                store(staging, index * self.lanes, tile[index], self.lanes)

            def store_columns(count: int, panel: Index = panel) -> None:
                with loop(rows) as row:
                    self._store_row(batch, first, row, panel * columns, count, staging, totals)

            is_whole = panel < panels - 1 if rest < columns and panels > 1 else rest == columns
            when(is_whole, lambda: store_columns(columns), lambda: store_columns(rest))

    def _store_row(
        self, batch: Sequence[Index], first: Index, row: Index, column: Index, count: int, sums: Buffer, totals: Buffer
    ) -> None:
        """Store ``count`` columns of one row of results, divided by the sum of its weights."""
        strides = self.spec.context.out_strides
        base = offset_of(0, batch, strides) + (first + row) * strides[-2]
        total = in_register(totals[row])
        # The largest score has a weight of 255; the sum is less only where no key is seen, and then it is 0.
        factor = in_register(constant(1.0, 1) / as_float32(tirx.Max(total, tirx.const(1, "int32"))))
        excess = in_register(total * tirx.const(self.spec.value_zero + self.values.offset, "int32"))
        for start, lanes in pieces(count, self.lanes):
            number = load(sums, row * self.values.columns + start, lanes) - broadcast(excess, lanes)
            value = rounded(as_float32(number) * broadcast(factor, lanes))
            place = VectorAt((*batch, first + row, column + start), len(batch) + 1, lanes, base + column + start)
            self.out.store(value, place)

    def _accumulate(
        self, rows: int, terms: int, word: _Words, right: _Operand, panel: Index, products: DotProduct
    ) -> RegisterTile:
        panels, vectors, lanes = right.panels, self.knobs.vectors, self.lanes
        base = panels.base + panel * panels.panel_stride

        def vector_at(step: Index, vector: int) -> Expr:
            return load(panels.buffer, base + step * panels.k_stride + vector * lanes, lanes)

        def start(vector: int) -> Expr:
            return load(right.starts, (panel * vectors + vector) * lanes, lanes)

        return accumulate(
            rows,
            vectors,
            lanes,
            words_of(terms),
            word,
            vector_at,
            unroll=self.knobs.unroll,
            arithmetic=products,
            initial=start if right.starts is not None else None,
        )
