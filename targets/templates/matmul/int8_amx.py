"""Dense layer of integers on a matrix unit: rows are gathered into panels of 64 columns, the weight is packed in quads.

    for unit in parallel(piece of the rows, piece of the outputs):
        panel[columns of 64, row] = a
        for group of outputs, tile of rows:
            sums = what corrects the zero point
            for columns of 64:
                sums += panel[columns, rows] @ weight[columns, outputs]
            out = epilogue(sums)

See `tersor.targets.templates.matmul.bf16`, of which this is the counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index
from ..parallelism import shared_loop
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, TILE_SIZE, TileShape
from ..vector.builder import Output, bind, load, loop, make_prim_func, store
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.operand_types import is_integer
from ..vector.vectors import pieces
from .bf16 import FEWEST_ROWS, ProductWriter, cut_both_ways, groups_of, reduced_tiles
from .spec import PACKED, MatmulSpec

DEPTH = 2 * TILE_DEPTH  # columns of `a` in one row of a panel


@dataclass(frozen=True)
class MatmulInt8AmxKnobs:
    """How a product is cut up.

    Attributes
    ----------
    rows, columns
        Tiles of rows and of outputs whose sums are in registers.
    row_units, output_units
        Pieces of the rows and of the groups of outputs, for caches and threads.
    """

    rows: int
    columns: int
    row_units: int = 1
    output_units: int = 1

    def shape(self, spec: MatmulSpec) -> TileShape:
        """The tiles of sums."""
        kind = amx.SignedTileShape if spec.dtype == "int8" else amx.UnsignedTileShape
        return kind(self.rows, self.columns)

    def weight_bytes(self, spec: MatmulSpec) -> int:
        """Packed weights."""
        return 2 * groups_of(spec, self) * _depths(spec) * self.columns * TILE_SIZE

    def table_size(self, spec: MatmulSpec) -> int:
        """Compensations, one for each output of the groups; none are needed where zero is zero."""
        return groups_of(spec, self) * self.columns * TILE_COLUMNS if spec.zero_point else 0


def _depths(spec: MatmulSpec) -> int:
    """Panels of 64 columns."""
    return -(-spec.k // DEPTH)


def supports(spec: MatmulSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.rhs == PACKED and not spec.batch and is_integer(spec.dtype) and spec.a_strides[-1] == 1
    fits = target.lanes() == TILE_COLUMNS and amx.INTEGER_FEATURE in target.features
    return is_dense and fits and spec.m >= FEWEST_ROWS[PACKED]


def candidates(spec: MatmulSpec, target: Cpu) -> list[MatmulInt8AmxKnobs]:
    """Feasible knobs, the best analytic guess first."""
    knobs = MatmulInt8AmxKnobs(1 if spec.m <= TILE_ROWS else 2, 1 if spec.n <= TILE_COLUMNS else 2)
    is_heavy = spec.n * spec.k > target.l2_bytes // 2
    by_outputs = is_heavy or spec.m < knobs.rows * TILE_ROWS * target.cores
    return cut_both_ways(spec, target, knobs, _depths(spec), by_outputs)


def pack_weight(spec: MatmulSpec, target: Cpu, knobs: MatmulInt8AmxKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay an int8 weight ``[n, k]`` out as [group of outputs, 64 columns, tile], zero padded; the table is appended."""
    packed = amx.pack_quads(reduced_tiles(spec, knobs, weight, DEPTH)).reshape(-1)
    table = knobs.table_size(spec)
    return append_table(packed, uniform_table(weight, spec.zero_point, table)) if table else packed


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulInt8AmxKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, weight, *epilogue buffers, out)``.

    The epilogue sees coordinates ``(row, column)`` with the lanes along the columns.
    """
    weight_bytes, table = knobs.weight_bytes(spec), knobs.table_size(spec)
    weight = BufferSpec("weight", packed_bytes(weight_bytes, table), "int8")
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        a, packed = main
        words = view_as(packed, "uint16", weight_bytes // 2)
        corrections = view_table(packed, weight_bytes, table) if table else None
        with shared_loop((knobs.row_units, knobs.output_units), macs=spec.macs) as (row_unit, output_unit):
            _UnitWriter(spec, knobs, knobs.shape(spec), (a, words, corrections), out).write(row_unit, output_unit)

    return make_prim_func("matmul_int8_amx", (BufferSpec("a", spec.a_size, spec.dtype), weight), output, body, epilogue)


class _UnitWriter(ProductWriter):
    """Gathers panels of 64 columns; the epilogue of each tile runs while the matrix unit works on the next one."""

    depth = DEPTH
    is_pipelined = True

    def gather(self, first: Index, rows: Index, panels: Buffer) -> None:
        """Copy the rows of this unit; bytes past the last column stay what they are, their weights are zero."""
        spec = self.spec
        whole, rest = divmod(spec.k, DEPTH)
        panel = self.panel_rows * TILE_DEPTH
        with loop(rows) as row:
            source = bind(spec.a_offset + (first + row) * spec.a_strides[-2])
            target = bind(row * TILE_DEPTH)
            if whole:
                with loop(whole) as depth:
                    self._copy(source + depth * DEPTH, DEPTH, panels, target + depth * panel)
            for start, count in pieces(rest - rest % 2, DEPTH):
                self._copy(source + whole * DEPTH + start, count, panels, target + whole * panel + start // 2)
            if rest % 2:
                last = tirx.Cast("uint16", tirx.reinterpret("uint8", self.a[source + spec.k - 1]))
                store(panels, target + whole * panel + rest // 2, last, 1)

    def _copy(self, source: Index, count: int, panels: Buffer, target: Index) -> None:
        """An even number of bytes."""
        lanes = count // 2
        words = tirx.reinterpret("uint16" if lanes == 1 else f"uint16x{lanes}", load(self.a, source, count))
        store(panels, target, words, lanes)
