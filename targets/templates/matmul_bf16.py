"""Dense layer in bfloat16 on a matrix unit: rows are gathered into panels of 32 columns, the weight is packed in pairs.

    for unit in parallel(piece of the rows, piece of the outputs):
        panel[columns of 32, row] = a
        for group of outputs, tile of rows:
            sums = 0
            for columns of 32:
                sums += panel[columns, rows] @ weight[columns, outputs]
            out = epilogue(sums)

Gathering makes every tile one contiguous kilobyte. Rows read in place would be a power of two of bytes apart in many
models, and would then compete for the same few lines of L1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import tirx

from ..record import Target
from . import amx
from .amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE, SumTiles, TileShape
from .base import NO_EPILOGUE, BufferSpec, Epilogue, VectorAt
from .bfloat16 import BFLOAT16, BITS, bits_of
from .builder import bind, constant, load, loop, make_prim_func, store, store_result, when
from .matmul_spec import PACKED, MatmulSpec
from .parallelism import chunk_loop, shared_loop
from .vectors import pieces

Buffer = Any
Index = Any

FEWEST_ROWS = 4  # fewer would leave most of a tile idle: the vector kernel streams the weight as fast
PANEL_SHARE = 3  # panels take at most this part of L2


@dataclass(frozen=True)
class MatmulBf16Knobs:
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

    @property
    def shape(self) -> TileShape:
        """The tiles of sums."""
        return TileShape(self.rows, self.columns)

    def groups(self, spec: MatmulSpec) -> int:
        """Groups of outputs whose sums are in registers at once."""
        return -(-spec.n // self.shape.outputs)

    def unit_rows(self, spec: MatmulSpec) -> int:
        """Most rows of a unit."""
        return -(-spec.m // self.row_units)

    def panel_size(self, spec: MatmulSpec) -> int:
        """Elements of all panels of a unit, and what the last tile reads beyond them."""
        return (_depth(spec) * self.unit_rows(spec) + self.shape.positions) * TILE_DEPTH


def supports(spec: MatmulSpec, target: Target) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    is_dense = spec.rhs == PACKED and not spec.batch and spec.dtype == BFLOAT16 and spec.a_strides[-1] == 1
    return is_dense and spec.m >= FEWEST_ROWS and amx.FEATURE in target.features


def candidates(spec: MatmulSpec, target: Target) -> list[MatmulBf16Knobs]:
    """Feasible knobs, the best analytic guess first."""
    rows = 1 if spec.m <= amx.TILE_ROWS else 2
    columns = 1 if spec.n <= TILE_COLUMNS else 2
    weight_bytes = 2 * spec.n * spec.k
    by_outputs = weight_bytes > target.l2_bytes // 2 or spec.m < rows * amx.TILE_ROWS * target.cores
    knobs = [_split(spec, target, rows, columns, by_outputs=choice) for choice in (by_outputs, not by_outputs)]
    return list(dict.fromkeys(knobs))


def _split(spec: MatmulSpec, target: Target, rows: int, columns: int, *, by_outputs: bool) -> MatmulBf16Knobs:
    """Units such that panels stay in L2 and all cores have work."""
    pieces_of_rows = -(-2 * spec.m * _depth(spec) * TILE_DEPTH * PANEL_SHARE // target.l2_bytes)
    knobs = MatmulBf16Knobs(rows, columns, pieces_of_rows)
    if by_outputs and knobs.groups(spec) >= target.cores:
        return MatmulBf16Knobs(rows, columns, pieces_of_rows, target.cores)
    return MatmulBf16Knobs(rows, columns, min(spec.m, -(-pieces_of_rows // target.cores) * target.cores))


def _depth(spec: MatmulSpec) -> int:
    """Panels of 32 columns."""
    return -(-spec.k // TILE_DEPTH)


def pack_weight(spec: MatmulSpec, target: Target, knobs: MatmulBf16Knobs, weight: torch.Tensor) -> torch.Tensor:
    """Lay a weight ``[n, k]`` out as [group of outputs, 32 columns, tile], flat and zero padded."""
    if tuple(weight.shape) != (spec.n, spec.k):
        raise ValueError(f"the weight must be [{spec.n}, {spec.k}], not {list(weight.shape)}")
    groups, outputs = knobs.groups(spec), knobs.shape.outputs
    padded = weight.new_zeros(groups * outputs, _depth(spec) * TILE_DEPTH, dtype=torch.bfloat16)
    padded[: spec.n, : spec.k] = weight.detach()
    return amx.pack_pairs(padded.reshape(groups, outputs, -1).transpose(1, 2)).reshape(-1)


def build(
    spec: MatmulSpec,
    target: Target,
    knobs: MatmulBf16Knobs,
    epilogue: Epilogue = NO_EPILOGUE,
    name: str = "matmul_bf16",
) -> tirx.PrimFunc:
    """Write the PrimFunc ``name(a, weight, *epilogue buffers, out)``.

    The epilogue sees coordinates ``(row, column)`` with the lanes along the columns.
    """
    weight_size = knobs.groups(spec) * _depth(spec) * knobs.columns * TILE_SIZE
    inputs = (BufferSpec("a", spec.a_size, BFLOAT16), BufferSpec("weight", weight_size, BFLOAT16))
    output = BufferSpec("out", spec.out_size, epilogue.dtype)

    def body(main: Sequence[Buffer], extra: Sequence[Buffer], out: Buffer) -> None:
        with shared_loop((knobs.row_units, knobs.output_units), macs=spec.macs) as (row_unit, output_unit):
            _UnitWriter(spec, knobs, epilogue, main, extra, out).write(row_unit, output_unit)

    return make_prim_func(name, inputs, output, body, epilogue)


class _UnitWriter:
    """Writes what one thread does: gather panels, then all tiles of its groups of outputs."""

    def __init__(
        self,
        spec: MatmulSpec,
        knobs: MatmulBf16Knobs,
        epilogue: Epilogue,
        main: Sequence[Buffer],
        extra: Sequence[Buffer],
        out: Buffer,
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.epilogue = epilogue
        self.a, self.weight = (bits_of(buffer) for buffer in main)
        self.extra = extra
        self.out = out
        self.panel = knobs.unit_rows(spec) * TILE_DEPTH

    def write(self, row_unit: Index, output_unit: Index) -> None:
        spec, units, step = self.spec, self.knobs.row_units, self.knobs.shape.positions
        first = 0 if units == 1 else bind(row_unit * spec.m // units)
        rows = spec.m if units == 1 else bind((row_unit + 1) * spec.m // units - first)
        panels = amx.panels(self.knobs.panel_size(spec))
        sums = amx.sums_buffer(self.knobs.shape)
        self._gather(first, rows, panels)
        amx.configure()
        tiles = (rows + step - 1) // step
        with chunk_loop(output_unit, self.knobs.output_units, self.knobs.groups(spec)) as group, loop(tiles) as tile:
            row = bind(tile * step)
            self._multiply(group, row, panels, sums)
            self._finish(first, rows, group, row, sums)
        amx.release()

    def _gather(self, first: Index, rows: Index, panels: Buffer) -> None:
        """Copy the rows of this unit; columns past the last one are zero."""
        spec = self.spec
        whole, rest = divmod(spec.k, TILE_DEPTH)
        with loop(rows) as row:
            source = bind(spec.a_offset + (first + row) * spec.a_strides[-2])
            target = bind(row * TILE_DEPTH)
            if whole:
                with loop(whole) as depth:
                    value = load(self.a, source + depth * TILE_DEPTH, TILE_DEPTH)
                    store(panels, target + depth * self.panel, value, TILE_DEPTH)
            if rest:
                at = target + whole * self.panel
                for start, lanes in pieces(rest, TILE_DEPTH):
                    store(panels, at + start, load(self.a, source + whole * TILE_DEPTH + start, lanes), lanes)
                for start, lanes in pieces(TILE_DEPTH - rest, TILE_DEPTH):
                    store(panels, at + rest + start, constant(0, lanes, BITS), lanes)

    def _multiply(self, group: Index, row: Index, panels: Buffer, sums: Buffer) -> None:
        depths, step = _depth(self.spec), self.knobs.columns * TILE_SIZE
        tiles = SumTiles(self.knobs.shape)
        tiles.clear()
        with loop(depths) as depth:
            weight = bind((group * depths + depth) * step)
            tiles.multiply_add(panels, bind(depth * self.panel + row * TILE_DEPTH), self.weight, weight)
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
        outputs = self.knobs.shape.outputs
        for start, lanes in pieces(count, TILE_COLUMNS):
            column = group * outputs + start
            flat = self.spec.out_offset + row * self.spec.out_strides[-2] + column
            at = VectorAt((row, column), 1, lanes, flat)
            store_result(self.out, load(sums, index * outputs + start, lanes), at, self.epilogue, self.extra)
