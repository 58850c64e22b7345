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
from dataclasses import dataclass, replace

import torch
from tvm import tirx

from ...machines.target import Target
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt
from ..parallelism import shared_loop
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_ROWS, TILE_SIZE, TileShape
from ..vector.amx_pipeline import Pending, Tile, for_each_tile
from ..vector.builder import Output, bind, load, loop, make_prim_func, store, when
from ..vector.compensation import append_table, packed_bytes, uniform_table, view_as, view_table
from ..vector.operand_types import is_integer
from ..vector.vectors import pieces
from .spec import PACKED, MatmulSpec

DEPTH = 2 * TILE_DEPTH  # columns of `a` in one row of a panel
FEWEST_ROWS = 4  # fewer would leave most of a tile idle: the vector kernel streams the weight as fast
PANEL_SHARE = 3  # panels take at most this part of L2


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

    def groups(self, spec: MatmulSpec) -> int:
        """Groups of outputs whose sums are in registers at once."""
        return -(-spec.n // (self.columns * TILE_COLUMNS))

    def unit_rows(self, spec: MatmulSpec) -> int:
        """Most rows of a unit."""
        return -(-spec.m // self.row_units)

    def weight_bytes(self, spec: MatmulSpec) -> int:
        """Packed weights."""
        return 2 * self.groups(spec) * _depths(spec) * self.columns * TILE_SIZE

    def table_size(self, spec: MatmulSpec) -> int:
        """Compensations, one for each output of the groups; none are needed where zero is zero."""
        return self.groups(spec) * self.columns * TILE_COLUMNS if spec.zero_point else 0


def _depths(spec: MatmulSpec) -> int:
    """Panels of 64 columns."""
    return -(-spec.k // DEPTH)


def supports(spec: MatmulSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.rhs == PACKED and not spec.batch and is_integer(spec.dtype) and spec.a_strides[-1] == 1
    fits = target.lanes() == TILE_COLUMNS and amx.INTEGER_FEATURE in target.features
    return is_dense and fits and spec.m >= FEWEST_ROWS


def candidates(spec: MatmulSpec, target: Target) -> list[MatmulInt8AmxKnobs]:
    """Feasible knobs, the best analytic guess first."""
    knobs = MatmulInt8AmxKnobs(1 if spec.m <= TILE_ROWS else 2, 1 if spec.n <= TILE_COLUMNS else 2)
    is_heavy = spec.n * spec.k > target.l2_bytes // 2
    by_outputs = is_heavy or spec.m < knobs.rows * TILE_ROWS * target.cores
    found = [_split(spec, target, knobs, by_outputs=choice) for choice in (by_outputs, not by_outputs)]
    return list(dict.fromkeys(found))


def _split(spec: MatmulSpec, target: Target, knobs: MatmulInt8AmxKnobs, *, by_outputs: bool) -> MatmulInt8AmxKnobs:
    """Units such that panels stay in L2 and all cores have work."""
    pieces_of_rows = -(-spec.m * _depths(spec) * DEPTH * PANEL_SHARE // target.l2_bytes)
    if by_outputs and knobs.groups(spec) >= target.cores:
        return replace(knobs, row_units=pieces_of_rows, output_units=target.cores)
    return replace(knobs, row_units=min(spec.m, -(-pieces_of_rows // target.cores) * target.cores))


def pack_weight(spec: MatmulSpec, target: Target, knobs: MatmulInt8AmxKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay an int8 weight ``[n, k]`` out as [group of outputs, 64 columns, tile], zero padded; the table is appended."""
    if tuple(weight.shape) != (spec.n, spec.k):
        raise ValueError(f"the weight must be [{spec.n}, {spec.k}], not {list(weight.shape)}")
    groups, outputs = knobs.groups(spec), knobs.columns * TILE_COLUMNS
    padded = weight.new_zeros(groups * outputs, _depths(spec) * DEPTH)
    padded[: spec.n, : spec.k] = weight
    packed = amx.pack_quads(padded.reshape(groups, outputs, -1).transpose(1, 2)).reshape(-1)
    table = knobs.table_size(spec)
    return append_table(packed, uniform_table(weight, spec.zero_point, table)) if table else packed


def build(
    spec: MatmulSpec, target: Target, knobs: MatmulInt8AmxKnobs, epilogue: Epilogue = NO_EPILOGUE
) -> tirx.PrimFunc:
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
            _UnitWriter(spec, knobs, (a, words, corrections), out).write(row_unit, output_unit)

    return make_prim_func("matmul_int8_amx", (BufferSpec("a", spec.a_size, spec.dtype), weight), output, body, epilogue)


class _UnitWriter:
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self,
        spec: MatmulSpec,
        knobs: MatmulInt8AmxKnobs,
        main: tuple[Buffer, Buffer, Buffer | None],
        out: Output,
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.shape = knobs.shape(spec)
        self.a, self.weight, self.table = main
        self.out = out
        self.panel = knobs.unit_rows(spec) * TILE_DEPTH

    def write(self, row_unit: Index, output_unit: Index) -> None:
        """Gather and multiply."""
        spec, units, step = self.spec, self.knobs.row_units, self.shape.positions
        first = 0 if units == 1 else bind(row_unit * spec.m // units)
        rows = spec.m if units == 1 else bind((row_unit + 1) * spec.m // units - first)
        panels = amx.panels((_depths(spec) * self.knobs.unit_rows(spec) + step) * TILE_DEPTH)
        self._gather(first, rows, panels)
        self.shape.begin()
        tiles = bind((rows + step - 1) // step)
        groups, units = self.knobs.groups(spec), self.knobs.output_units
        range_of_groups = bind(output_unit * groups // units), bind((output_unit + 1) * groups // units)

        def multiply(tile: Tile, pending: Pending) -> None:
            self._multiply(tile.group, tile.position, panels, tile.sums, tile.place, pending)

        def finish(tile: Tile, begin: Index, count: int) -> None:
            self._finish(first, rows, tile, begin, count)

        for_each_tile(range_of_groups, tiles, self.shape, rows, multiply, finish)
        self.shape.end()

    def _gather(self, first: Index, rows: Index, panels: Buffer) -> None:
        """Copy the rows of this unit; bytes past the last column stay what they are, their weights are zero."""
        spec = self.spec
        whole, rest = divmod(spec.k, DEPTH)
        with loop(rows) as row:
            source = bind(spec.a_offset + (first + row) * spec.a_strides[-2])
            target = bind(row * TILE_DEPTH)
            if whole:
                with loop(whole) as depth:
                    self._copy(source + depth * DEPTH, DEPTH, panels, target + depth * self.panel)
            for start, count in pieces(rest - rest % 2, DEPTH):
                self._copy(source + whole * DEPTH + start, count, panels, target + whole * self.panel + start // 2)
            if rest % 2:
                last = tirx.Cast("uint16", tirx.reinterpret("uint8", self.a[source + spec.k - 1]))
                store(panels, target + whole * self.panel + rest // 2, last, 1)

    def _copy(self, source: Index, count: int, panels: Buffer, target: Index) -> None:
        """An even number of bytes."""
        lanes = count // 2
        words = tirx.reinterpret("uint16" if lanes == 1 else f"uint16x{lanes}", load(self.a, source, count))
        store(panels, target, words, lanes)

    def _multiply(self, group: Index, row: Index, panels: Buffer, sums: Buffer, place: Index, pending: Pending) -> None:
        depths, step = _depths(self.spec), self.knobs.columns * TILE_SIZE
        tiles = self.shape.tiles()
        if self.table is None:
            tiles.clear()
        else:
            tiles.start_from(self.table, group * self.shape.outputs)
        with loop(depths) as depth:
            weight = bind((group * depths + depth) * step)
            tiles.multiply_add(panels, bind(depth * self.panel + row * TILE_DEPTH), self.weight, weight)
            pending.after_step(depth, 0, 1, depths)
        tiles.store(sums, place)

    def _finish(self, first: Index, rows: Index, tile: Tile, begin: Index, count: int) -> None:
        """Apply the epilogue to some rows of a tile, as far as they exist, and store them."""
        outputs, groups = self.shape.outputs, self.knobs.groups(self.spec)
        rest = self.spec.n % outputs

        def of_columns(columns: int) -> None:
            with loop(count) as offset:
                index = bind(begin + offset)
                row = bind(tile.position + index)
                exists = tirx.And(index < self.shape.positions, row < rows)
                when(exists, lambda: self._store_row(first + row, tile, columns, index))

        is_last = tile.group == groups - 1 if groups > 1 else True
        when(is_last if rest else False, lambda: of_columns(rest), lambda: of_columns(outputs))

    def _store_row(self, row: Index, tile: Tile, count: int, index: Index) -> None:
        outputs = self.shape.outputs
        for start, lanes in pieces(count, TILE_COLUMNS):
            column = tile.group * outputs + start
            flat = self.spec.out_offset + row * self.spec.out_strides[-2] + column
            at = VectorAt((row, column), 1, lanes, flat)
            value = load(tile.sums, tile.place + index * outputs + start, lanes)
            self.out.store(value, at)
