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
from dataclasses import dataclass, replace

import torch
from tvm import tirx

from ...machines.target import Target
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Index, VectorAt
from ..parallelism import balance, chunk_loop, shared_loop
from ..vector import amx
from ..vector.amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE
from ..vector.bf16_panels import can_pack_right, depth_of, gather_rows, offset_of, pack_right
from ..vector.bf16_tiles import PanelKnobs, fitting_rows, needed_unit, unit_of
from ..vector.bfloat16 import BFLOAT16, bits_of
from ..vector.builder import Output, bind, load, loop, make_prim_func, when
from ..vector.vectors import pieces
from .spec import ACTIVATION, PACKED, MatmulSpec

# Fewer rows would leave most of a tile idle, and the vector kernel streams the right-hand side as fast.
FEWEST_ROWS = {PACKED: 4, ACTIVATION: 8}
PANEL_SHARE = 3  # panels take at most this part of L2


@dataclass(frozen=True)
class MatmulBf16Knobs(PanelKnobs):
    """How a product is cut up: positions are rows; see the base class."""

    def groups(self, spec: MatmulSpec) -> int:
        """Groups of outputs whose sums are in registers at once."""
        return -(-spec.n // self.shape.outputs)

    def unit_rows(self, spec: MatmulSpec) -> int:
        """Most rows of a unit."""
        return -(-spec.m // self.row_units)

    def panel_size(self, spec: MatmulSpec) -> int:
        """Elements of all panels of a unit, and what the last tile reads beyond them."""
        return (depth_of(spec.k) * self.unit_rows(spec) + self.shape.positions) * TILE_DEPTH


def supports(spec: MatmulSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    fits = not spec.batch if spec.rhs == PACKED else can_pack_right(spec)
    is_deep = spec.dtype == BFLOAT16 and spec.a_strides[-1] == 1 and spec.m >= FEWEST_ROWS[spec.rhs]
    return fits and is_deep and unit_of(target) is not None


def candidates(spec: MatmulSpec, target: Target) -> list[MatmulBf16Knobs]:
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
    found = [_split(spec, target, knobs, by_outputs=choice) for choice in (by_outputs, not by_outputs)]
    return list(dict.fromkeys(found))


def _split(spec: MatmulSpec, target: Target, knobs: MatmulBf16Knobs, *, by_outputs: bool) -> MatmulBf16Knobs:
    """Units such that panels stay in L2 and all cores have work."""
    pieces_of_rows = -(-2 * spec.m * depth_of(spec.k) * TILE_DEPTH * PANEL_SHARE // target.l2_bytes)
    if by_outputs and knobs.groups(spec) >= target.cores:
        return replace(knobs, row_units=pieces_of_rows, output_units=target.cores)
    return replace(knobs, row_units=min(spec.m, -(-pieces_of_rows // target.cores) * target.cores))


def pack_weight(spec: MatmulSpec, target: Target, knobs: MatmulBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight ``[n, k]`` out as [group of outputs, 32 columns, tile], flat and zero padded."""
    if tuple(weight.shape) != (spec.n, spec.k):
        raise ValueError(f"the weight must be [{spec.n}, {spec.k}], not {list(weight.shape)}")
    groups, outputs = knobs.groups(spec), knobs.shape.outputs
    padded = weight.new_zeros(groups * outputs, depth_of(spec.k) * TILE_DEPTH, dtype=torch.bfloat16)
    padded[: spec.n, : spec.k] = weight.detach()
    return amx.pack_pairs(padded.reshape(groups, outputs, -1).transpose(1, 2)).reshape(-1)


def build(spec: MatmulSpec, target: Target, knobs: MatmulBf16Knobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(a, rhs, *epilogue buffers, out)``.

    The epilogue sees coordinates ``(*batch, row, column)`` with the lanes along the columns.
    """
    weight_size = knobs.groups(spec) * depth_of(spec.k) * knobs.columns * TILE_SIZE
    rhs_size = weight_size if spec.rhs == PACKED else spec.rhs_size
    inputs = (BufferSpec("a", spec.a_size, BFLOAT16), BufferSpec("rhs", rhs_size, BFLOAT16))
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        extents = (*spec.batch, knobs.row_units, knobs.output_units)
        with shared_loop(extents, macs=spec.macs) as (*batch, row_unit, output_unit):
            _UnitWriter(spec, knobs, main, out, batch).write(row_unit, output_unit)

    importing = replace(epilogue, llvm_ir=epilogue.llvm_ir + knobs.shape.llvm_ir)
    return make_prim_func("matmul_bf16", inputs, output, body, importing)


class _UnitWriter:
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self,
        spec: MatmulSpec,
        knobs: MatmulBf16Knobs,
        main: Sequence[Buffer],
        out: Output,
        batch: Sequence[Index],
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.a, self.rhs = (bits_of(buffer) for buffer in main)
        self.out = out
        self.batch = batch
        self.panel = knobs.unit_rows(spec) * TILE_DEPTH

    def write(self, row_unit: Index, output_unit: Index) -> None:
        spec, units, step = self.spec, self.knobs.row_units, self.knobs.shape.positions
        first = 0 if units == 1 else bind(row_unit * spec.m // units)
        rows = spec.m if units == 1 else bind((row_unit + 1) * spec.m // units - first)
        right = self.rhs if spec.rhs == PACKED else pack_right(spec, self.rhs, self.batch, self.knobs.shape)
        panels = amx.panels(self.knobs.panel_size(spec))
        sums = amx.sums_buffer(self.knobs.shape)
        base = bind(offset_of(spec.a_offset, self.batch, spec.a_strides) + first * spec.a_strides[-2])
        gather_rows(self.a, base, spec.a_strides[-2], rows, spec.k, panels, self.knobs.unit_rows(spec))
        self.knobs.shape.begin()
        tiles = (rows + step - 1) // step
        with chunk_loop(output_unit, self.knobs.output_units, self.knobs.groups(spec)) as group, loop(tiles) as tile:
            row = bind(tile * step)
            self._multiply(group, row, panels, right, sums)
            self._finish(first, rows, group, row, sums)
        self.knobs.shape.end()

    def _multiply(self, group: Index, row: Index, panels: Buffer, right: Buffer, sums: Buffer) -> None:
        depths, step = depth_of(self.spec.k), self.knobs.columns * TILE_SIZE
        tiles = self.knobs.shape.tiles()
        tiles.clear()
        with loop(depths) as depth:
            weight = bind((group * depths + depth) * step)
            tiles.multiply_add(panels, bind(depth * self.panel + row * TILE_DEPTH), right, weight)
        tiles.store(sums)

    def _finish(self, first: Index, rows: Index, group: Index, row: Index, sums: Buffer) -> None:
        """Apply the epilogue to the sums that belong to an output, and store them."""
        outputs, groups = self.knobs.shape.outputs, self.knobs.groups(self.spec)
        rest = self.spec.n % outputs

        def of_columns(count: int) -> None:
            with loop(self.knobs.shape.positions) as index:
                when(row + index < rows, lambda: self._store_row(first + row + index, group, count, index, sums))

        is_last = group == groups - 1 if groups > 1 else True
        when(is_last if rest else False, lambda: of_columns(rest), lambda: of_columns(outputs))

    def _store_row(self, row: Index, group: Index, count: int, index: Index, sums: Buffer) -> None:
        outputs, batch = self.knobs.shape.outputs, self.batch
        base = offset_of(self.spec.out_offset, batch, self.spec.out_strides) + row * self.spec.out_strides[-2]
        for start, lanes in pieces(count, TILE_COLUMNS):
            column = group * outputs + start
            at = VectorAt((*batch, row, column), len(batch) + 1, lanes, base + column)
            self.out.store(load(sums, index * outputs + start, lanes), at)
