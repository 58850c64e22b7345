"""Copying an activation into panels at run time, ahead of its use as the right-hand side of a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from .builder import constant, load, loop, store, when
from .matmul_spec import MatmulKnobs, MatmulSpec
from .parallelism import chunk_loop
from .vectors import bind, load_strided, pieces, transpose

Buffer = Any
Index = Any


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
    copy = _copy_transposed if k_stride == 1 and column_stride != 1 else _copy_rows
    with chunk_loop(column_chunk, knobs.column_chunks, panels) as panel:
        target = (panel - first) * (spec.k * columns)
        source = base + panel * columns * column_stride
        rest = spec.n - (panels - 1) * columns
        when(
            panel < panels - 1 if rest < columns else True,
            lambda: copy(spec, lanes, rhs, source, scratch, target, columns, columns),
            lambda: copy(spec, lanes, rhs, source, scratch, target, columns, rest),
        )
    return RhsPanels(scratch, 0, spec.k * columns, columns, first)


def _copy_rows(
    spec: MatmulSpec,
    lanes: int,
    rhs: Buffer,
    source: Index,
    scratch: Buffer,
    target: Index,
    columns: int,
    valid: int,
) -> None:
    """Copy one panel row by row."""
    with loop(spec.k) as k:
        _copy_row(spec, lanes, rhs, source, scratch, target, columns, valid, k)


def _copy_row(
    spec: MatmulSpec,
    lanes: int,
    rhs: Buffer,
    source: Index,
    scratch: Buffer,
    target: Index,
    columns: int,
    valid: int,
    k: Index,
) -> None:
    *_, k_stride, column_stride = spec.rhs_strides
    runs = [(start, width, True) for start, width in pieces(valid, lanes)]
    runs += [(valid + start, width, False) for start, width in pieces(columns - valid, lanes)]
    for start, width, is_valid in runs:
        value = constant(0.0, width)
        if is_valid:
            value = load_strided(rhs, source + k * k_stride + start * column_stride, column_stride, width)
        store(scratch, target + k * columns + start, value, width)


def _copy_transposed(
    spec: MatmulSpec,
    lanes: int,
    rhs: Buffer,
    source: Index,
    scratch: Buffer,
    target: Index,
    columns: int,
    valid: int,
) -> None:
    """Copy one panel whose columns are contiguous along ``k``, transposing squares of ``lanes`` in registers."""
    column_stride = spec.rhs_strides[-1]
    squares = spec.k // lanes

    def transpose_square(vector: Index, square: Index, valid_rows: int) -> None:
        corner = source + vector * (lanes * column_stride) + square * lanes
        rows = [bind(load(rhs, corner + column * column_stride, lanes)) for column in range(valid_rows)]
        rows += [constant(0.0, lanes)] * (lanes - valid_rows)
        for k, row in enumerate(transpose(rows)):
            store(scratch, target + (square * lanes + k) * columns + vector * lanes, row, lanes)

    whole_vectors, rest = divmod(valid, lanes)
    if squares:
        with loop(squares) as square:
            if whole_vectors:
                with loop(whole_vectors) as vector:
                    transpose_square(vector, square, lanes)
            if whole_vectors * lanes < columns:
                transpose_square(whole_vectors, square, rest)
            for vector in range(whole_vectors + 1, columns // lanes):
                for k in range(lanes):
                    at = target + (square * lanes + k) * columns + vector * lanes
                    store(scratch, at, constant(0.0, lanes), lanes)
    if squares * lanes < spec.k:
        with loop(spec.k, squares * lanes) as k:
            _copy_row(spec, lanes, rhs, source, scratch, target, columns, valid, k)
