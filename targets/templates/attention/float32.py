"""Scaled dot-product attention in one kernel: ``softmax(scale * Q K^T + mask) V``, the scores never leave the cache.

A piece of work is some rows of one head. It packs the head's keys (transposed) and values into panels, then for each
tile of rows computes the scores into a scratch tile, turns them into exponentials in place, and multiplies those with
the values; the rows are divided by their sums as the result is stored. All operands are read and written in place
through strides, so that splitting and merging heads costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt, offset_of
from ..matmul.pack import RhsPanels, pack_activation
from ..matmul.spec import MatmulKnobs, MatmulSpec, reads_rhs_in_place
from ..matmul.tile import accumulate
from ..parallelism import chunk_loop, even_tile, shared_loop
from ..rows.row_vectors import RowVectors
from ..rows.softmax import write_exponentials
from ..vector.builder import Output, broadcast, constant, load, loop, make_prim_func, store, when
from ..vector.vector_math import maximum
from ..vector.vectors import in_register, lanes_of, pieces
from .spec import AttentionKnobs, AttentionSpec, candidates

__all__ = ["AttentionKnobs", "AttentionSpec", "SoftmaxRows", "build", "candidates", "make_attention"]


_LEAST_PEAK = -3.0e38  # finite, so that a row whose scores are all -inf becomes zeros, as in PyTorch, rather than NaN


def build(
    spec: AttentionSpec,
    target: Cpu,
    knobs: AttentionKnobs,
    epilogue: Epilogue = NO_EPILOGUE,
    mask: Epilogue = NO_EPILOGUE,
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(query, key, value, *mask buffers, *epilogue buffers, out)``.

    ``mask.apply`` is called on each vector of scaled scores, with coordinates ``(*batch, query, key)``; the epilogue
    on each vector of the result, with coordinates ``(*batch, query, element)``.
    """
    columns = knobs.vectors * target.lanes()

    def write(inputs: Sequence[Buffer], rows: SoftmaxRows) -> None:
        _Writer(spec, target, knobs, inputs, rows).write()

    return make_attention("attention", spec, target, -(-spec.keys // columns) * columns, mask, epilogue, write)


def make_attention(
    name: str,
    spec: AttentionSpec,
    target: Cpu,
    score_columns: int,
    mask: Epilogue,
    epilogue: Epilogue,
    write: Callable[[Sequence[Buffer], SoftmaxRows], None],
) -> tirx.PrimFunc:
    """Make the PrimFunc of an attention.

    Parameters
    ----------
    score_columns
        Elements that the kernel writes in a row of scores: the keys, and what fills up its last tile.
    write
        ``write((query, key, value), rows)`` emits the kernel's loops.
    """
    inputs = (
        BufferSpec("query", spec.query_size, spec.dtype),
        BufferSpec("key", spec.key_size, spec.dtype),
        BufferSpec("value", spec.value_size, spec.dtype),
    )
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        rows = SoftmaxRows(spec, target.lanes(), score_columns, mask, buffers[len(inputs) :], out)
        write(buffers[: len(inputs)], rows)

    return make_prim_func(name, (*inputs, *mask.buffers), output, body, epilogue)


@dataclass(frozen=True)
class SoftmaxRows:
    """Turns rows of scores into weights, and stores rows of results: what attention is beside its two products."""

    spec: AttentionSpec
    lanes: int
    score_columns: int
    mask: Epilogue
    mask_buffers: Sequence[Buffer]
    out: Output

    @property
    def score_stride(self) -> int:
        """Elements between rows of scores; a multiple of 4 KiB apart, they would compete for the same lines of L1."""
        return self.score_columns + self.lanes

    def write_weights(self, batch: Sequence[Index], first: Index, row: Index, scores: Buffer, factors: Buffer) -> None:
        """Turn one row of scores into exponentials; what is left to divide by goes into ``factors``."""
        base = row * self.score_stride
        vectors = RowVectors(self.spec.keys, self.lanes, unroll=4)

        def read(offset: Index, lanes: int) -> Expr:
            score = load(scores, base + offset, lanes) * constant(self.spec.scale, lanes)
            at = VectorAt((*batch, first + row, offset), len(batch) + 1, lanes, base + offset)
            return self.mask.apply(score, at, self.mask_buffers)

        def write(offset: Index, value: Expr) -> None:
            store(scores, base + offset, value, lanes_of(value))

        total, rest = write_exponentials(vectors, read, write, least_peak=_LEAST_PEAK)
        if rest is not None:
            vectors.store_rest(rest, write)
        # The largest score contributes 1 to the sum; it is less only where no key can be seen, and then the weights are
        # 0.
        store(factors, row, constant(1.0, 1) / maximum(total, 1.0), 1)

    def store_row(
        self, batch: Sequence[Index], row: Index, column: Index, count: int, sums: Buffer, at: Index, factor: Expr
    ) -> None:
        """Store ``count`` columns of one row of results: sums from element ``at``, times ``factor``."""
        strides = self.spec.context.out_strides
        base = offset_of(0, batch, strides) + row * strides[-2]
        for start, lanes in pieces(count, self.lanes):
            value = load(sums, at + start, lanes) * broadcast(factor, lanes)
            place = VectorAt((*batch, row, column + start), len(batch) + 1, lanes, base + column + start)
            self.out.store(value, place)


class _Writer:
    """Writes the loops of one attention."""

    def __init__(
        self, spec: AttentionSpec, target: Cpu, knobs: AttentionKnobs, inputs: Sequence[Buffer], rows: SoftmaxRows
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.query, self.key, self.value = inputs
        self.rows = rows
        self.lanes = target.lanes()
        self.columns = knobs.vectors * self.lanes
        self.tile_knobs = MatmulKnobs(knobs.rows, knobs.vectors, pack_rhs=True)
        self.key_panels = -(-spec.keys // self.columns)

    def write(self) -> None:
        spec, knobs = self.spec, self.knobs
        with shared_loop((*spec.batch, knobs.row_chunks), macs=spec.macs) as (*batch, row_chunk):
            keys = self._panels(spec.scores, self.key, batch)
            values = self._panels(spec.context, self.value, batch)
            scores = T.alloc_buffer((knobs.rows * self.rows.score_stride,), "float32", align=64)
            factors = T.alloc_buffer((knobs.rows,), "float32")
            tiles = -(-spec.queries // knobs.rows)

            def row_tile(rows: int, first: Index) -> None:
                self._write_scores(batch, rows, first, keys, scores)
                with loop(rows) as row:
                    self.rows.write_weights(batch, first, row, scores, factors)
                self._write_context(batch, rows, first, values, scores, factors)

            with chunk_loop(row_chunk, knobs.row_chunks, tiles) as tile:
                even_tile(tile, tiles, spec.queries, row_tile)

    def _panels(self, product: MatmulSpec, buffer: Buffer, batch: Sequence[Index]) -> RhsPanels:
        base = offset_of(product.rhs_offset, batch, product.rhs_strides)
        if reads_rhs_in_place(product, self.columns):
            return RhsPanels(buffer, base, self.columns, product.rhs_strides[-2])
        return pack_activation(product, self.tile_knobs, self.lanes, buffer, base, 0)

    def _write_scores(self, batch: Sequence[Index], rows: int, first: Index, keys: RhsPanels, scores: Buffer) -> None:
        *_, row_stride, element_stride = self.spec.scores.a_strides
        base = offset_of(self.spec.query_offset, batch, self.spec.scores.a_strides) + first * row_stride
        with loop(self.key_panels) as panel:
            tile = self._accumulate(
                rows,
                self.spec.width,
                lambda row, k: self.query[base + row * row_stride + k * element_stride],
                keys,
                panel,
            )
            for row in range(rows):
                for vector in range(self.knobs.vectors):
                    at = row * self.rows.score_stride + panel * self.columns + vector * self.lanes
                    store(scores, at, tile[row * self.knobs.vectors + vector], self.lanes)

    def _write_context(
        self, batch: Sequence[Index], rows: int, first: Index, values: RhsPanels, scores: Buffer, factors: Buffer
    ) -> None:
        spec = self.spec
        panels = -(-spec.value_width // self.columns)
        rest = spec.value_width - (panels - 1) * self.columns
        staging = T.alloc_buffer((rows * self.columns,), "float32", align=64)
        stride = self.rows.score_stride
        with loop(panels) as panel:
            tile = self._accumulate(rows, spec.keys, lambda row, k: scores[row * stride + k], values, panel)
            for index in range(rows * self.knobs.vectors):
                store(staging, index * self.lanes, tile[index], self.lanes)

            def store_columns(count: int, panel: Index = panel) -> None:
                with loop(rows) as row:
                    factor = in_register(factors[row])
                    at = row * self.columns
                    self.rows.store_row(batch, first + row, panel * self.columns, count, staging, at, factor)

            is_whole = panel < panels - 1 if rest < self.columns and panels > 1 else rest == self.columns
            when(is_whole, lambda: store_columns(self.columns), lambda: store_columns(rest))

    def _accumulate(
        self, rows: int, steps: int, element: Callable[[int, Index], Expr], panels: RhsPanels, panel: Index
    ) -> Expr:
        base = panels.base + panel * panels.panel_stride

        def vector_at(k: Index, vector: int) -> Expr:
            return load(panels.buffer, base + k * panels.k_stride + vector * self.lanes, self.lanes)

        return accumulate(rows, self.knobs.vectors, self.lanes, steps, element, vector_at, unroll=self.knobs.unroll)
