"""Matrix products: a dense layer on a packed weight, and products of two activations (attention).

The right-hand side is read as *panels*: ``[panel][k][columns of the panel]``, so that the innermost loop walks through
memory once, forwards. A register tile holds ``rows x vectors`` sums; each step of ``k`` loads ``vectors`` vectors of
the panel and multiplies them with one broadcast element for each row. Within a piece of work the panels run fastest:
the rows' elements stay in L1, the panels stream from L2 (Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008, with the roles of the operands exchanged). With a single row the product is a stream through the
weight, bound by memory: there, several chains of sums hide the latency of the multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.arrangement import Arrangement
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt, offset_of
from ..parallelism import chunk_loop, even_tile, shared_loop
from ..vector.arithmetic import FLOAT32, Arithmetic
from ..vector.builder import Output, RegisterTile, load, loop, make_prim_func, prefetch, store, when
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import lane_slice, pieces
from .pack import RhsPanels, pack_activation
from .space import candidates
from .spec import ACTIVATION, PACKED, MatmulKnobs, MatmulSpec, reads_rhs_in_place
from .tile import accumulate

__all__ = ["MatmulKnobs", "MatmulSpec", "arrangement", "build", "candidates", "pack_weight"]


def pack_weight(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight ``[n, k]`` out as panels ``[panels][k][panel columns]``, padded with zeros.

    Returns
    -------
    torch.Tensor
        One-dimensional, contiguous, ``knobs.packed_size(spec, target)`` elements.
    """
    if spec.rhs != PACKED:
        raise ValueError("only a constant right-hand side is packed at compile time")
    check_weight_shape(weight, (spec.n, spec.k))
    columns = knobs.panel_columns(target)
    panels = knobs.panels(spec, target)
    padded = weight.detach()
    if spec.n < panels * columns:  # a large weight is not copied twice
        padded = torch.nn.functional.pad(padded, (0, 0, 0, panels * columns - spec.n))
    return padded.reshape(panels, columns, spec.k).permute(0, 2, 1).contiguous().reshape(-1)


def arrangement(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> Arrangement:
    """Where `pack_weight` puts the numbers of a weight."""
    panels, columns = knobs.panels(spec, target), knobs.panel_columns(target)
    return Arrangement((panels, spec.k, columns), (0, 2, 1), (panels * columns, spec.k))


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, rhs, *epilogue buffers, out)``.

    The epilogue sees logical coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    columns = knobs.panel_columns(target)
    if spec.rhs == ACTIVATION and not knobs.pack_rhs and not reads_rhs_in_place(spec, columns):
        raise ValueError("this right-hand side cannot be read in place: its columns must be contiguous, whole panels")
    if spec.rhs == PACKED:
        rhs = BufferSpec("weight", knobs.packed_size(spec, target), spec.dtype)
    else:
        rhs = BufferSpec("rhs", spec.rhs_size, spec.dtype)
    inputs = (BufferSpec("a", spec.a_size, spec.dtype), rhs)
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        MatmulWriter(spec, target, knobs, buffers, out).write()

    return make_prim_func("matmul", inputs, output, body, epilogue)


Weights = Callable[[Index, int], Expr]  # one vector of the right-hand side for one step


@dataclass(frozen=True)
class _RowTile:
    """Some rows of one matrix of the batch, where they find the right-hand side, and where their sums go first."""

    batch: Sequence[Index]
    rows: int
    first: Index
    panels: RhsPanels
    staging: Buffer | None


class MatmulWriter:
    """Writes the loops of one matrix product."""

    arithmetic: Arithmetic = FLOAT32

    def __init__(
        self, spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs, inputs: Sequence[Buffer], out: Output
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.a, self.rhs = inputs
        self.out = out
        self.lanes = target.lanes()
        self.columns = knobs.panel_columns(target)
        self.panels = knobs.panels(spec, target)
        self.steps = spec.k

    def write(self) -> None:
        spec, knobs = self.spec, self.knobs
        extents = (*spec.batch, knobs.column_chunks, knobs.row_chunks)
        with shared_loop(extents, macs=spec.macs, bytes_moved=4 * spec.batch_size * spec.n * spec.k) as indices:
            *batch, column_chunk, row_chunk = indices
            panels = self.panels_of(batch, column_chunk)
            staging = None
            if self.out.epilogue is not NO_EPILOGUE:
                staging = T.alloc_buffer((knobs.rows * self.columns,), self.arithmetic.sum_type, align=64)
            tiles = knobs.row_tiles(spec)

            def row_tile(rows: int, first: Index) -> None:
                self.begin_rows(self._row_starts(batch, rows, first))
                with chunk_loop(column_chunk, knobs.column_chunks, self.panels) as panel:
                    self._tile(_RowTile(batch, rows, first, panels, staging), panel)

            with chunk_loop(row_chunk, knobs.row_chunks, tiles) as tile:
                even_tile(tile, tiles, spec.m, row_tile)

    def panels_of(self, batch: Sequence[Index], column_chunk: Index) -> RhsPanels:
        """Where this piece of work finds the right-hand side; an activation may be copied first."""
        spec, knobs = self.spec, self.knobs
        if spec.rhs == PACKED:
            return RhsPanels(self.rhs, 0, spec.k * self.columns, self.columns)
        base = offset_of(spec.rhs_offset, batch, spec.rhs_strides)
        in_place = RhsPanels(self.rhs, base, self.columns, spec.rhs_strides[-2])
        if not knobs.pack_rhs:
            return in_place
        return pack_activation(spec, knobs, self.lanes, self.rhs, base, column_chunk)

    def begin_rows(self, starts: Sequence[Index]) -> None:
        """What is done once for a tile of rows, which begin at ``starts``: nothing."""

    def _row_starts(self, batch: Sequence[Index], rows: int, first: Index) -> list[Index]:
        """Where rows of ``a`` begin."""
        strides = self.spec.a_strides
        base = offset_of(self.spec.a_offset, batch, strides) + first * strides[-2]
        return [base + row * strides[-2] for row in range(rows)]

    def _tile(self, at: _RowTile, panel: Index) -> None:
        sums = self.sums(at, panel)
        rest = self.spec.n - (self.panels - 1) * self.columns
        if at.staging is not None:
            for row in range(at.rows):
                for vector in range(self.knobs.vectors):
                    place = row * self.columns + vector * self.lanes
                    store(at.staging, place, sums[row * self.knobs.vectors + vector], self.lanes)
        when(
            panel < self.panels - 1 if rest < self.columns else True,
            lambda: self._store(at, panel, self.columns, sums),
            lambda: self._store(at, panel, rest, sums),
        )

    def sums(self, at: _RowTile, panel: Index) -> RegisterTile:
        """The register tile after all steps of ``k``."""
        knobs, lanes, panels = self.knobs, self.lanes, at.panels
        starts = self._row_starts(at.batch, at.rows, at.first)
        rhs_base = panels.base + (panel - panels.first) * panels.panel_stride

        def weights(step: Index, vector: int) -> Expr:
            return load(panels.buffer, rhs_base + step * panels.k_stride + vector * lanes, lanes)

        tile = accumulate(
            at.rows,
            knobs.vectors,
            lanes,
            self.steps,
            lambda row, step: self.element(starts[row], step),
            weights,
            unroll=knobs.unroll,
            chains=knobs.chains,
            before_step=self.prefetching(panels, rhs_base),
            arithmetic=self.arithmetic,
        )
        self.complete(tile, starts, weights, panel)
        return tile

    def element(self, start: Index, step: Index) -> Expr:
        """What a step reads of the row of ``a`` that begins at ``start``."""
        return self.a[start + step * self.spec.a_strides[-1]]

    def complete(self, tile: RegisterTile, starts: Sequence[Index], weights: Weights, panel: Index) -> None:
        """Add to the sums what the steps leave out: nothing."""

    def prefetching(self, panels: RhsPanels, base: Index) -> Callable[[Index], None] | None:
        """What a step does to have the packed weight in cache some steps later; ``base`` is where the panel begins."""
        if not self.knobs.prefetch_bytes:
            return None

        def step(k: Index) -> None:
            ahead = base + k * panels.k_stride + self.knobs.prefetch_bytes // 4
            for vector in range(self.knobs.vectors):
                prefetch(panels.buffer, ahead + vector * self.lanes)

        return step

    def _store(self, at: _RowTile, panel: Index, count: int, sums: RegisterTile) -> None:
        """Apply the epilogue to the first ``count`` columns of a tile and store them.

        A real epilogue reads the sums back from ``staging``, row by row in a loop: it would be too much code if
        written out for each vector of the tile.
        """
        *_, row_stride, _ = self.spec.out_strides
        out_base = offset_of(self.spec.out_offset, at.batch, self.spec.out_strides)

        def store_row(row: Index, values: Callable[[int, int], Expr]) -> None:
            for start, lanes in pieces(count, self.lanes):
                column = panel * self.columns + start
                flat = out_base + (at.first + row) * row_stride + column
                place = VectorAt((*at.batch, at.first + row, column), len(at.batch) + 1, lanes, flat)
                self.out.store(values(start, lanes), place)

        if at.staging is not None:
            with loop(at.rows) as row:
                store_row(row, lambda start, lanes: load(at.staging, row * self.columns + start, lanes))
            return
        for row in range(at.rows):

            def from_registers(start: int, lanes: int, row: int = row) -> Expr:
                index = row * self.knobs.vectors + start // self.lanes
                return lane_slice(sums[index], start % self.lanes, lanes)

            store_row(row, from_registers)
