"""Copying an activation into panels at run time, ahead of its use as the right-hand side of a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, Index
from ..parallelism import chunk_loop
from ..vector.builder import constant, load, loop, store, when
from ..vector.vectors import in_register, load_strided, pieces, transpose
from .spec import MatmulKnobs, MatmulSpec


@dataclass(frozen=True)
class RhsPanels:
    """How to address the right-hand side: element ``(panel, k, column)`` lies at
    ``base + (panel - first) * panel_stride + k * k_stride + column``.
    """

    buffer: Buffer
    base: Index
    panel_stride: int
    k_stride: int
    first: Index = 0


def pack_activation(
    spec: MatmulSpec, knobs: MatmulKnobs, lanes: int, rhs: Buffer, base: Index, column_chunk: Index
) -> RhsPanels:
    """Copy the columns of one piece of work into a scratch buffer of the thread: ``[panel][k][column]``.

    Columns past the last one are filled with zeros.
    """
    columns = knobs.vectors * lanes
    panels = -(-spec.n // columns)
    most_panels = -(-panels // knobs.column_chunks)
    scratch = T.alloc_buffer((most_panels * spec.k * columns,), "float32", scope="global", align=64)
    first = column_chunk * panels // knobs.column_chunks
    *_, k_stride, column_stride = spec.rhs_strides
    is_transposed = k_stride == 1 and column_stride != 1
    with chunk_loop(column_chunk, knobs.column_chunks, panels) as panel:
        to, source = (panel - first) * (spec.k * columns), base + panel * columns * column_stride
        copy = _PanelCopy(spec, lanes, rhs, source, scratch, to, columns)
        write = copy.transposed if is_transposed else copy.row_by_row
        rest = spec.n - (panels - 1) * columns
        when(panel < panels - 1 if rest < columns else True, lambda: write(columns), lambda: write(rest))
    return RhsPanels(scratch, 0, spec.k * columns, columns, first)


@dataclass(frozen=True)
class _PanelCopy:
    """Copies one panel: from element ``source`` of ``rhs`` to element ``to`` of ``scratch``.

    Its methods take the number of columns that exist; the others are filled with zeros.
    """

    spec: MatmulSpec
    lanes: int
    rhs: Buffer
    source: Index
    scratch: Buffer
    to: Index
    columns: int

    def row_by_row(self, valid: int) -> None:
        """For any strides."""
        with loop(self.spec.k) as k:
            self._row(k, valid)

    def _row(self, k: Index, valid: int) -> None:
        *_, k_stride, column_stride = self.spec.rhs_strides
        runs = [(start, width, True) for start, width in pieces(valid, self.lanes)]
        runs += [(valid + start, width, False) for start, width in pieces(self.columns - valid, self.lanes)]
        for start, width, is_valid in runs:
            value = constant(0.0, width)
            if is_valid:
                at = self.source + k * k_stride + start * column_stride
                value = load_strided(self.rhs, at, column_stride, width)
            self._store(k, start, value, width)

    def transposed(self, valid: int) -> None:
        """For columns that are contiguous along ``k``: squares of ``lanes`` are transposed in registers."""
        lanes, depth = self.lanes, self.spec.k
        squares = depth // lanes
        whole_vectors, rest = divmod(valid, lanes)
        if squares:
            with loop(squares) as square:
                if whole_vectors:
                    with loop(whole_vectors) as vector:
                        self._square(vector, square, lanes)
                if whole_vectors * lanes < self.columns:
                    self._square(whole_vectors, square, rest)
                for vector in range(whole_vectors + 1, self.columns // lanes):
                    for k in range(lanes):
                        self._store(square * lanes + k, vector * lanes, constant(0.0, lanes), lanes)
        if squares * lanes < depth:
            with loop(depth, squares * lanes) as k:
                self._row(k, valid)

    def _square(self, vector: Index, square: Index, valid_rows: int) -> None:
        lanes, stride = self.lanes, self.spec.rhs_strides[-1]
        corner = self.source + vector * (lanes * stride) + square * lanes
        rows = [in_register(load(self.rhs, corner + column * stride, lanes)) for column in range(valid_rows)]
        rows += [constant(0.0, lanes)] * (lanes - valid_rows)
        for k, row in enumerate(transpose(rows)):
            self._store(square * lanes + k, vector * lanes, row, lanes)

    def _store(self, k: Index, column: Index, value: Expr, width: int) -> None:
        store(self.scratch, self.to + k * self.columns + column, value, width)
