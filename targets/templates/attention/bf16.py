"""Scaled dot-product attention in bfloat16: both products on the matrix unit or by dot products of pairs.

    for unit in parallel(head, piece of the queries):
        panels of the queries; packed keys and values
        for tile of queries:
            scores = queries @ keys transposed
            for row: weights = exp(scale * scores + mask - peak); factor = 1 / sum
            panels of the weights, rounded to bfloat16
            out = (weights @ values) * factor

Scores, exponentials and their sums are float32. All operands are read and written in place through strides, so that
splitting and merging heads costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Index, offset_of
from ..matmul.bf16 import can_pack_right, pack_right
from ..parallelism import balance, shared_loop
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH
from ..vector.bf16_panels import depth_of, gather_rows, tile_at
from ..vector.bf16_tiles import SumsShape, Unit, fitting_rows, needed_unit, sums_shape, unit_of
from ..vector.bfloat16 import BFLOAT16, ROUNDING_IR, bits_of, round_in_hardware
from ..vector.builder import bind, constant, load, loop, store, when
from ..vector.vectors import pieces
from .float32 import SoftmaxRows, make_attention
from .spec import AttentionSpec

FEWEST_QUERIES = 4  # fewer do not repay packing keys and values


@dataclass(frozen=True)
class AttentionBf16Knobs:
    """How an attention is cut up.

    Attributes
    ----------
    rows, columns
        Tiles of queries, and of keys or elements of values, whose sums are in registers.
    row_chunks
        Pieces that the queries of one head are cut into; pieces times heads is what threads share.
    unit
        What multiplies; see `tersor.targets.templates.vector.bf16_tiles`.
    """

    rows: int
    columns: int
    row_chunks: int = 1
    unit: Unit = "amx"

    @property
    def shape(self) -> SumsShape:
        """The tiles of sums."""
        return sums_shape(self.unit, self.rows, self.columns)


def supports(spec: AttentionSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``; elements of a query must lie side by side."""
    fits = spec.scores.a_strides[-1] == 1 and can_pack_right(spec.scores) and can_pack_right(spec.context)
    return spec.dtype == BFLOAT16 and fits and spec.queries >= FEWEST_QUERIES and unit_of(target) is not None


def candidates(spec: AttentionSpec, target: Cpu) -> list[AttentionBf16Knobs]:
    """Feasible knobs, best analytic guess first."""
    unit = needed_unit(target)
    columns = 1 if max(spec.keys, spec.value_width) <= TILE_COLUMNS else 2
    most = fitting_rows(unit, spec.queries, columns)
    found = []
    for rows in (most, -(-most // 2)):
        positions = sums_shape(unit, rows, columns).positions
        (row_chunks,) = balance(spec.scores.batch_size, (-(-spec.queries // positions),), target.cores)
        found.append(AttentionBf16Knobs(rows, columns, row_chunks, unit))
    return list(dict.fromkeys(found))


def build(
    spec: AttentionSpec,
    target: Cpu,
    knobs: AttentionBf16Knobs,
    epilogue: Epilogue = NO_EPILOGUE,
    mask: Epilogue = NO_EPILOGUE,
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(query, key, value, *mask buffers, *epilogue buffers, out)``.

    ``mask`` and ``epilogue`` are those of `tersor.targets.templates.attention.build`.
    """
    outputs = knobs.shape.outputs
    score_columns = max(-(-spec.keys // outputs) * outputs, depth_of(spec.keys) * TILE_DEPTH)
    importing = replace(epilogue, llvm_ir=(epilogue.llvm_ir or ROUNDING_IR) + knobs.shape.llvm_ir)

    def write(inputs: Sequence[Buffer], rows: SoftmaxRows) -> None:
        _Writer(spec, knobs, inputs, rows).write()

    return make_attention("attention_bf16", spec, target, score_columns, mask, importing, write)


class _Writer:
    """Writes the loops of one attention; methods go from the outermost loop inwards."""

    def __init__(
        self, spec: AttentionSpec, knobs: AttentionBf16Knobs, inputs: Sequence[Buffer], rows: SoftmaxRows
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.shape = knobs.shape
        self.query, self.key, self.value = (bits_of(buffer) for buffer in inputs)
        self.rows = rows
        self.key_groups = -(-spec.keys // self.shape.outputs)
        self.value_groups = -(-spec.value_width // self.shape.outputs)
        self.chunk_rows = -(-spec.queries // knobs.row_chunks)

    def write(self) -> None:
        spec, chunks, step = self.spec, self.knobs.row_chunks, self.shape.positions
        with shared_loop((*spec.batch, chunks), macs=spec.macs) as (*batch, chunk):
            first = 0 if chunks == 1 else bind(chunk * spec.queries // chunks)
            count = spec.queries if chunks == 1 else bind((chunk + 1) * spec.queries // chunks - first)
            keys = pack_right(spec.scores, self.key, batch, self.shape)
            values = pack_right(spec.context, self.value, batch, self.shape)
            queries = self._gather_queries(batch, first, count)
            scores = amx.scratch(step * self.rows.score_stride, "float32")
            weights = amx.panels(depth_of(spec.keys) * step * TILE_DEPTH)
            sums = amx.sums_buffer(self.shape)
            factors = T.alloc_buffer((step,), "float32")
            self.shape.begin()
            with loop((count + step - 1) // step) as tile:
                done = bind(tile * step)
                self._write_scores(done, queries, keys, scores)
                with loop(tirx.min(step, count - done)) as row:
                    self.rows.write_weights(batch, first + done, row, scores, factors)
                    self._round_weights(row, scores, weights)
                self._write_context(batch, first + done, count - done, weights, values, sums, factors)
            self.shape.end()

    def _gather_queries(self, batch: Sequence[Index], first: Index, count: Index) -> Buffer:
        product = self.spec.scores
        row_stride = product.a_strides[-2]
        plane = self.chunk_rows + self.shape.positions
        panels = amx.panels(depth_of(self.spec.width) * plane * TILE_DEPTH)
        base = bind(offset_of(product.a_offset, batch, product.a_strides) + first * row_stride)
        gather_rows(self.query, base, row_stride, count, self.spec.width, panels, plane)
        return panels

    def _write_scores(self, done: Index, queries: Buffer, keys: Buffer, scores: Buffer) -> None:
        depths, columns = depth_of(self.spec.width), self.knobs.columns
        plane = (self.chunk_rows + self.shape.positions) * TILE_DEPTH
        with loop(self.key_groups) as group:
            tiles = self.shape.tiles()
            tiles.clear()
            with loop(depths) as depth:
                left = bind(depth * plane + done * TILE_DEPTH)
                tiles.multiply_add(queries, left, keys, bind(tile_at(group, depth, 0, depths, columns)))
            tiles.store(scores, bind(group * self.shape.outputs), self.rows.score_stride)

    def _round_weights(self, row: Index, scores: Buffer, weights: Buffer) -> None:
        """Copy a row of exponentials to panels; what fills the last panel up is zero."""
        keys, depths = self.spec.keys, depth_of(self.spec.keys)
        base = bind(row * self.rows.score_stride)
        for start, lanes in pieces(depths * TILE_DEPTH - keys, TILE_COLUMNS):
            store(scores, base + keys + start, constant(0.0, lanes), lanes)
        with loop(depths) as depth:
            value = load(scores, base + depth * TILE_DEPTH, TILE_DEPTH)
            at = (depth * self.shape.positions + row) * TILE_DEPTH
            store(weights, at, round_in_hardware(value), TILE_DEPTH)

    def _write_context(
        self,
        batch: Sequence[Index],
        first: Index,
        count: Index,
        weights: Buffer,
        values: Buffer,
        sums: Buffer,
        factors: Buffer,
    ) -> None:
        depths, columns, outputs = depth_of(self.spec.keys), self.knobs.columns, self.shape.outputs
        groups, rest = self.value_groups, self.spec.value_width % outputs
        with loop(groups) as group:
            tiles = self.shape.tiles()
            tiles.clear()
            with loop(depths) as depth:
                left = bind(depth * (self.shape.positions * TILE_DEPTH))
                tiles.multiply_add(weights, left, values, bind(tile_at(group, depth, 0, depths, columns)))
            tiles.store(sums)

            def of_width(width: int, group: Index = group) -> None:
                with loop(tirx.min(self.shape.positions, count)) as row:
                    factor = bind(factors[row])
                    self.rows.store_row(batch, first + row, group * outputs, width, sums, row * outputs, factor)

            is_last = group == groups - 1 if groups > 1 else True
            when(is_last if rest else False, lambda: of_width(rest), lambda: of_width(outputs))
