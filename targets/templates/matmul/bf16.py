"""Matrix product in bfloat16: rows are gathered into panels of 32 columns, the right-hand side is packed in pairs.

    for unit in parallel(batch, piece of the rows, piece of the outputs):
        panel[columns of 32, row] = a; an activation on the right is packed too
        for group of outputs, tile of rows:
            sums = 0
            for columns of 32:
                sums += panel[columns, rows] @ weight[columns, outputs]
            out = epilogue(sums)

Gathering makes every tile one contiguous kilobyte. Rows read in place would be a power of two of bytes apart in many
models, and would then compete for the same few lines of L1. A weight is packed when the model is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from typing import ClassVar, TypeVar

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt, offset_of
from ..parallelism import balance, shared_loop
from ..registry import Knobs
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE
from ..vector.amx_pipeline import Pending, Tile, TileWriter
from ..vector.bf16_panels import depth_of, gather_rows, pair_rows, transpose_panels
from ..vector.bf16_tiles import PanelKnobs, SumsShape, fitting_rows, needed_unit, unit_of
from ..vector.bfloat16 import BFLOAT16, bits_of
from ..vector.builder import Output, bind, load, loop, make_prim_func, when
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import pieces
from .spec import ACTIVATION, PACKED, MatmulSpec

# Fewer rows would leave most of a tile idle, and the vector kernel streams the right-hand side as fast.
FEWEST_ROWS = {PACKED: 4, ACTIVATION: 8}
PANEL_SHARE = 3  # panels take at most this part of L2

KnobsT = TypeVar("KnobsT", bound=Knobs)


@dataclass(frozen=True)
class MatmulBf16Knobs(PanelKnobs):
    """How a product is cut up: positions are rows; see the base class."""


def groups_of(spec: MatmulSpec, knobs: Knobs) -> int:
    """Groups of outputs whose sums are in registers at once."""
    return -(-spec.n // (knobs.columns * TILE_COLUMNS))


def supports(spec: MatmulSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    fits = not spec.batch if spec.rhs == PACKED else can_pack_right(spec)
    is_deep = spec.dtype == BFLOAT16 and spec.a_strides[-1] == 1 and spec.m >= FEWEST_ROWS[spec.rhs]
    return fits and is_deep and unit_of(target) is not None


def candidates(spec: MatmulSpec, target: Cpu) -> list[MatmulBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    unit = needed_unit(target)
    columns = 1 if spec.n <= TILE_COLUMNS else 2
    knobs = MatmulBf16Knobs(fitting_rows(unit, spec.m, columns), columns, unit=unit)
    if spec.rhs == ACTIVATION:
        tiles = -(-spec.m // knobs.shape.positions)
        (row_units,) = balance(spec.batch_size, (tiles,), target.cores)
        return [replace(knobs, row_units=row_units)]
    weight_bytes = 2 * spec.n * spec.k
    by_outputs = weight_bytes > target.l2_bytes // 2 or spec.m < knobs.shape.positions * target.cores
    return cut_both_ways(spec, target, knobs, depth_of(spec.k), by_outputs)


def cut_both_ways(spec: MatmulSpec, target: Cpu, knobs: KnobsT, depths: int, by_outputs: bool) -> list[KnobsT]:
    """Units such that panels, ``depths`` of 64 bytes for each row, stay in L2 and all cores have work.

    The cores share the outputs, or else the rows; what ``by_outputs`` says comes first.
    """
    row_units = -(-spec.m * depths * 2 * TILE_DEPTH * PANEL_SHARE // target.l2_bytes)
    by_rows = replace(knobs, row_units=min(spec.m, -(-row_units // target.cores) * target.cores))
    if groups_of(spec, knobs) < target.cores:
        return [by_rows]
    shared = replace(knobs, row_units=row_units, output_units=target.cores)
    return list(dict.fromkeys((shared, by_rows) if by_outputs else (by_rows, shared)))


def pack_weight(spec: MatmulSpec, target: Cpu, knobs: MatmulBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight ``[n, k]`` out as [group of outputs, 32 columns, tile], flat and zero padded."""
    return amx.pack_pairs(reduced_tiles(spec, knobs, weight.detach().to(torch.bfloat16), TILE_DEPTH)).reshape(-1)


def reduced_tiles(spec: MatmulSpec, knobs: Knobs, weight: torch.Tensor, depth: int) -> torch.Tensor:
    """A weight ``[n, k]`` as [group of outputs, k, output of the group], padded to whole groups and panels."""
    check_weight_shape(weight, (spec.n, spec.k))
    groups, outputs = groups_of(spec, knobs), knobs.columns * TILE_COLUMNS
    padded = weight.new_zeros(groups * outputs, -(-spec.k // depth) * depth)
    padded[: spec.n, : spec.k] = weight
    return padded.reshape(groups, outputs, -1).transpose(1, 2)


def can_pack_right(spec: MatmulSpec) -> bool:
    """Whether `pack_right` takes the right-hand side of ``spec``: its rows or its columns are contiguous."""
    return 1 in spec.rhs_strides[-2:]


def pack_right(spec: MatmulSpec, source: Buffer, batch: Sequence[Index], shape: SumsShape) -> Buffer:
    """Pack the right-hand side of one product of a batch; where columns do not exist, anything may be."""
    *_, k_stride, column_stride = spec.rhs_strides
    base = bind(offset_of(spec.rhs_offset, batch, spec.rhs_strides))
    plane = -(-spec.n // shape.outputs) * shape.outputs
    tiles = amx.panels(depth_of(spec.k) * TILE_DEPTH * plane)
    if column_stride == 1:
        pair_rows(source, base, k_stride, spec.k, spec.n, shape.columns, tiles)
        return tiles
    rows = amx.panels(depth_of(spec.k) * TILE_DEPTH * plane)
    gather_rows(source, base, column_stride, spec.n, spec.k, rows, plane)
    transpose_panels(rows, plane, spec.k, shape.columns, tiles)
    return tiles


def build(spec: MatmulSpec, target: Cpu, knobs: MatmulBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, rhs, *epilogue buffers, out)``.

    The epilogue sees coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    weight_size = groups_of(spec, knobs) * depth_of(spec.k) * knobs.columns * TILE_SIZE
    rhs_size = weight_size if spec.rhs == PACKED else spec.rhs_size
    inputs = (BufferSpec("a", spec.a_size, BFLOAT16), BufferSpec("rhs", rhs_size, BFLOAT16))
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        extents = (*spec.batch, knobs.row_units, knobs.output_units)
        with shared_loop(extents, macs=spec.macs) as (*batch, row_unit, output_unit):
            operands = (*(bits_of(buffer) for buffer in main), None)
            ProductWriter(spec, knobs, knobs.shape, operands, out, batch).write(row_unit, output_unit)

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + knobs.shape.llvm_ir)
    return make_prim_func("matmul_bf16", inputs, output, body, importing)


@dataclass
class ProductWriter(TileWriter):
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    spec: MatmulSpec
    knobs: Knobs
    shape: SumsShape
    operands: InitVar[tuple[Buffer, Buffer, Buffer | None]]
    out: Output
    batch: Sequence[Index] = ()

    depth: ClassVar[int] = TILE_DEPTH  # columns of `a` in a row of a panel

    def __post_init__(self, operands: tuple[Buffer, Buffer, Buffer | None]) -> None:
        self.a, self.rhs, self.table = operands
        self.depths = -(-self.spec.k // self.depth)
        self.panel_rows = -(-self.spec.m // self.knobs.row_units)
        self.groups = groups_of(self.spec, self.knobs)

    def write(self, row_unit: Index, output_unit: Index) -> None:
        """Gather and multiply."""
        spec, units, step = self.spec, self.knobs.row_units, self.shape.positions
        first = bind(row_unit * spec.m // units)
        rows = bind((row_unit + 1) * spec.m // units - first)
        right = self.rhs if spec.rhs == PACKED else pack_right(spec, self.rhs, self.batch, self.shape)
        panels = amx.panels((self.depths * self.panel_rows + step) * TILE_DEPTH)
        sums = self.allocate_sums()
        self.gather(first, rows, panels)
        self.shape.begin()
        self.write_tiles(
            (output_unit, self.knobs.output_units, self.groups),
            (rows + step - 1) // step,
            rows,
            sums,
            lambda tile, pending: self.multiply(tile, panels, right, pending),
            lambda tile, *piece: self.finish(first, rows, tile, piece),
        )
        self.shape.end()

    def gather(self, first: Index, rows: Index, panels: Buffer) -> None:
        """Copy the rows of this unit."""
        spec = self.spec
        base = bind(offset_of(spec.a_offset, self.batch, spec.a_strides) + first * spec.a_strides[-2])
        gather_rows(self.a, base, spec.a_strides[-2], rows, spec.k, panels, self.panel_rows)

    def multiply(self, tile: Tile, panels: Buffer, right: Buffer, pending: Pending | None) -> None:
        """Write the sums of one tile; with each step goes a share of what is pending."""
        tiles = self.shape.tiles()
        self.start(tiles, tile.group)
        with loop(self.depths) as depth:
            weight = bind((tile.group * self.depths + depth) * (self.knobs.columns * TILE_SIZE))
            panel = bind(depth * (self.panel_rows * TILE_DEPTH) + tile.position * TILE_DEPTH)
            tiles.multiply_add(panels, panel, right, weight)
            if pending is not None:
                pending.after_step(depth, 0, 1, self.depths)
        tiles.store(tile.sums, tile.place)

    def finish(self, first: Index, rows: Index, tile: Tile, piece: tuple[()] | tuple[Index, int]) -> None:
        """Apply the epilogue to the sums that belong to an output, and store them.

        ``piece`` is the first of some positions and their number, which may reach beyond the tile; empty for all.
        """
        outputs, positions = self.shape.outputs, self.shape.positions
        rest = self.spec.n % outputs
        begin, count = piece or (0, positions)

        def of_columns(columns: int) -> None:
            with loop(count) as index:
                if not piece:
                    row, exists = first + tile.position + index, tile.position + index < rows
                else:
                    index = bind(begin + index)
                    row = bind(tile.position + index)
                    row, exists = first + row, tirx.And(index < positions, row < rows)
                when(exists, lambda: self._store_row(row, tile, columns, index))

        is_last = tile.group == self.groups - 1 if self.groups > 1 else True
        when(is_last if rest else False, lambda: of_columns(rest), lambda: of_columns(outputs))

    def _store_row(self, row: Index, tile: Tile, count: int, index: Index) -> None:
        outputs, batch = self.shape.outputs, self.batch
        base = offset_of(self.spec.out_offset, batch, self.spec.out_strides) + row * self.spec.out_strides[-2]
        for start, lanes in pieces(count, TILE_COLUMNS):
            column = tile.group * outputs + start
            at = VectorAt((*batch, row, column), len(batch) + 1, lanes, base + column)
            self.out.store(load(tile.sums, tile.place + index * outputs + start, lanes), at)
