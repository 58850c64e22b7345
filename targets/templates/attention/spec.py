"""What a fused attention is (:class:`AttentionSpec`) and how it may be tiled (:class:`AttentionKnobs`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...machines.target import Cpu
from ..base import row_major_strides
from ..matmul.spec import ACTIVATION, MatmulSpec
from ..parallelism import balance
from ..vector.operand_types import check_operands


@dataclass(frozen=True)
class AttentionSpec:
    """``out[b, s, :] = softmax_t(scale * <query[b, s], key[b, t]> + …) . value[b, t, :]``.

    Attributes
    ----------
    batch
        Extents of the dimensions in front: ``(images, heads)``, or ``(heads,)``.
    queries, keys
        Number of query rows, and of key (and value) rows.
    width, value_width
        Elements of a query or key row, and of a value row.
    scale
        Factor of the scores, usually ``width ** -0.5``.
    query_strides, key_strides, value_strides, out_strides
        Elements between neighbours ``(*batch, row, element)``; by default those of plain row-major tensors.
    query_offset, key_offset, value_offset
        Where the first element lies in its buffer.
    query_size, key_size, value_size, out_size
        Element counts of the buffers; by default just large enough.
    dtype
        Element type of query, key and value; scores are float32.
    query_zero, value_zero
        The integers that stand for zero in queries and values of ``"uint8"`` or ``"int8"``.
    """

    batch: tuple[int, ...]
    queries: int
    keys: int
    width: int
    value_width: int
    scale: float
    query_strides: tuple[int, ...] = ()
    key_strides: tuple[int, ...] = ()
    value_strides: tuple[int, ...] = ()
    out_strides: tuple[int, ...] = ()
    query_offset: int = 0
    key_offset: int = 0
    value_offset: int = 0
    query_size: int = 0
    key_size: int = 0
    value_size: int = 0
    out_size: int = 0
    dtype: str = "float32"
    query_zero: int = 0
    value_zero: int = 0

    def __post_init__(self) -> None:
        check_operands(self.dtype, self.query_zero)
        check_operands(self.dtype, self.value_zero)
        if self.key_strides and len(self.key_strides) != len(self.batch) + 2:
            raise ValueError(f"key_strides {self.key_strides} must have {len(self.batch) + 2} entries")
        # The two products check everything else, and know the sizes.
        sizes = {
            "query_size": self.scores.a_size,
            "key_size": self.scores.rhs_size,
            "value_size": self.context.rhs_size,
            "out_size": self.context.out_size,
        }
        for name, size in sizes.items():
            object.__setattr__(self, name, size)

    @property
    def scores(self) -> MatmulSpec:
        """The product of queries and transposed keys."""
        key_strides = self.key_strides or row_major_strides((*self.batch, self.keys, self.width))
        *outer, row, element = key_strides
        return MatmulSpec(
            self.queries,
            self.keys,
            self.width,
            ACTIVATION,
            self.batch,
            a_strides=self.query_strides,
            a_offset=self.query_offset,
            a_size=self.query_size,
            rhs_strides=(*outer, element, row),
            rhs_offset=self.key_offset,
            rhs_size=self.key_size,
            dtype=self.dtype,
        )

    @property
    def context(self) -> MatmulSpec:
        """The product of softmax weights and values."""
        return MatmulSpec(
            self.queries,
            self.value_width,
            self.keys,
            ACTIVATION,
            self.batch,
            rhs_strides=self.value_strides,
            rhs_offset=self.value_offset,
            rhs_size=self.value_size,
            out_strides=self.out_strides,
            out_size=self.out_size,
            dtype=self.dtype,
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of both products and the exponentials."""
        exponentials = self.scores.batch_size * self.queries * self.keys
        return self.scores.macs + self.context.macs + 12 * exponentials


@dataclass(frozen=True)
class AttentionKnobs:
    """How an attention is cut up.

    Attributes
    ----------
    rows, vectors
        Register tile of both products.
    row_chunks
        Pieces that the rows of one head are cut into; pieces times heads is what threads share.
    unroll
        Steps of the sums written out in the inner loops.
    """

    rows: int
    vectors: int
    row_chunks: int = 1
    unroll: int = 2


def candidates(spec: AttentionSpec, target: Cpu) -> list[AttentionKnobs]:
    """Feasible knobs, best analytic guess first."""
    found: dict[AttentionKnobs, None] = {}
    for vectors in (2, 3, 1, 4):
        if vectors > 1 and (vectors - 1) * target.lanes() >= max(spec.value_width, spec.keys):
            continue
        most_rows = (target.vector_registers - 1 - vectors) // vectors
        tiles = -(-spec.queries // most_rows)
        rows = -(-spec.queries // tiles)
        (row_chunks,) = balance(spec.scores.batch_size, (tiles,), target.cores)
        found[AttentionKnobs(rows, vectors, row_chunks)] = None
    for knobs in tuple(found):
        found.update(dict.fromkeys(_variants(spec, target, knobs)))
    return list(found)


def _variants(spec: AttentionSpec, target: Cpu, knobs: AttentionKnobs) -> Iterator[AttentionKnobs]:
    """Smaller tiles, other numbers of pieces, more or less unrolling."""
    for rows in dict.fromkeys((knobs.rows, -(-knobs.rows // 2))):
        tiles = -(-spec.queries // rows)
        pieces = dict.fromkeys((min(knobs.row_chunks, tiles), 1, min(target.cores, tiles), tiles))
        for row_chunks, unroll in itertools.product(pieces, (2, 1, 4)):
            if spec.scores.batch_size * row_chunks >= min(target.cores, spec.scores.batch_size * tiles):
                yield replace(knobs, rows=rows, row_chunks=row_chunks, unroll=unroll)
