"""Winograd convolution: 3 x 3, stride 1, in blocked layout, without a padded copy.

    for block of tiles:
        V[position, tile, channel] = Bt d B                      input transform
        for slice of output channels:
            for position, group of output blocks, group of tiles:
                M[position, tile, output] = V[position] @ U[position]   register-tiled matrix product
            output = epilogue(At M A)                            output transform

Threads share the blocks of tiles. Or, where tiles are few and the weights many, they share the slices of output
channels, so that each reads only its part of the weights. Then they have shared the input transform before, or each
transforms the whole input for itself.

Numbers in bfloat16 are widened as they are read, and transforms and products are float32: eight bits are too few for
what the transforms subtract (F(4x4, 3x3) would be off by 2 % of the outputs' size, direct convolution is by 0.2 %).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, VectorAt
from ..vector.builder import (
    Output,
    RegisterTile,
    bind,
    broadcast,
    load,
    loop,
    make_prim_func,
    parallel,
    prefetch,
    store,
    when,
)
from ..vector.vectors import in_register
from .spec import Conv2dSpec, output_groups
from .winograd_patches import Patches
from .winograd_spec import TileGrid, WinogradKnobs, pack_weight, packed_size, supports
from .winograd_tiling import candidates, estimate_cycles

__all__ = ["WinogradKnobs", "build", "candidates", "estimate_cycles", "pack_weight", "supports"]


def build(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)`` over flat buffers.

    Input and output are blocked; lanes of output channels that do not exist hold what the epilogue makes of zero.
    Weights come from :func:`pack_weight` with the same knobs.

    Raises
    ------
    ValueError
        For a convolution that :func:`supports` refuses.
    """
    reason = supports(spec)
    if reason is not None:
        raise ValueError(f"Winograd convolution does not apply: {reason}")
    data = BufferSpec("data", spec.input_size(target), spec.dtype)
    inputs = (data, BufferSpec("weight", packed_size(spec, target, knobs)))
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        _Writer(spec, target, knobs, main[0], main[1], out).write()

    return make_prim_func("winograd", inputs, output, body, epilogue)


class _Writer:
    """Writes the loops of one convolution; methods go from the outermost loop inwards."""

    def __init__(
        self, spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, data: Buffer, weight: Buffer, output: Output
    ) -> None:
        self.spec = spec
        self.knobs = knobs
        self.data = data
        self.weight = weight
        self.output = output
        self.lanes = target.lanes()
        self.grid = TileGrid.of(spec, knobs)
        self.blocks = min(knobs.blocks, self.grid.groups)
        self.groups_per_block = -(-self.grid.groups // self.blocks)
        self.input_blocks = spec.input_blocks(target)
        self.output_blocks = spec.output_blocks(target)
        self.weight_groups = output_groups(spec, target, knobs.vectors)
        self.slice_units = sum(groups.count for groups in self.weight_groups)
        self.slices = min(knobs.slices, self.slice_units)
        self.slice_blocks = min(-(-self.slice_units // self.slices) * knobs.vectors, self.output_blocks)
        # One vector more than needed between positions: powers of two would put all of them into the same cache sets.
        slots = self.groups_per_block * self.grid.rows
        self.input_stride = (slots * self.input_blocks + 1) * self.lanes
        self.product_stride = (slots * self.slice_blocks + 1) * self.lanes
        self.patches = Patches(spec, knobs, self.grid, self.lanes)

    def write(self) -> None:
        """The outer loops, shared by threads."""
        size = self.knobs.positions * self.input_stride
        if self.knobs.order == "tiles":
            with parallel(self.blocks) as (block,):
                self.transformed = T.alloc_buffer((size,), "float32")
                self._transform_block(0, block, 0, self.input_blocks)
                with loop(self.slices) as piece:
                    self._multiply(0, block, piece)
            return
        if self.knobs.order == "slices":
            with parallel(self.slices) as (piece,):
                self.transformed = T.alloc_buffer((size,), "float32")
                with loop(self.blocks) as block:
                    self._transform_block(0, block, 0, self.input_blocks)
                    self._multiply(0, block, piece)
            return
        self.transformed = T.alloc_buffer((self.blocks * size,), "float32")
        with parallel(self.blocks, self.input_blocks) as (block, channels):
            self._transform_block(bind(block * size), block, channels, channels + 1)
        with parallel(self.slices, self.blocks) as (piece, block):
            self._multiply(bind(block * size), block, piece)

    def _bounds(self, piece: Expr, pieces: int, units: int) -> tuple[Expr, Expr]:
        if pieces == 1:
            return 0, units
        return bind(piece * units // pieces), bind((piece + 1) * units // pieces)

    def _transform_block(self, base: Expr, block: Expr, first: Expr, behind: Expr) -> None:
        """Transform the tiles of a block, for input channel blocks ``[first, behind)``."""
        staging = self.patches.allocate_staging()
        begin, end = self._bounds(block, self.blocks, self.grid.groups)
        with loop(behind, first) as channels, loop(end, begin) as group, loop(self._rows_of(group)) as row:
            tile = bind(self.grid.first_tile(group) + row)
            panel = ((group - begin) * self.input_blocks + channels) * self.grid.rows + row
            place = bind(base + panel * self.lanes)
            self.patches.transform_input(self.data, channels, tile, staging, self.transformed, place, self.input_stride)

    def _rows_of(self, group: Expr) -> Expr:
        if self.grid.longer == self.grid.groups:
            return self.grid.rows
        return tirx.Select(group < self.grid.longer, tirx.const(self.grid.rows), tirx.const(self.grid.rows - 1))

    def _multiply(self, base: Expr, block: Expr, piece: Expr) -> None:
        """All products of a block of tiles with a slice of the output channels, and their output transform."""
        self.products = T.alloc_buffer((self.knobs.positions * self.product_stride,), "float32")
        begin, end = self._bounds(block, self.blocks, self.grid.groups)
        first, behind = self._bounds(piece, self.slices, self.slice_units)
        first_block = bind(first * self.knobs.vectors)
        behind_block = bind(tirx.min(behind * self.knobs.vectors, self.output_blocks))
        block_weights = self.spec.c * self.lanes
        weight = bind(first_block * (self.knobs.positions * block_weights))
        position_weights = bind((behind_block - first_block) * block_weights)
        with loop(self.knobs.positions) as position, loop(behind, first) as unit:
            slot = (unit - first) * self.knobs.vectors
            panel = bind(weight + position * position_weights + slot * block_weights)
            source = bind(base + position * self.input_stride)
            place = bind(position * self.product_stride + slot * (self.groups_per_block * self.grid.rows * self.lanes))

            def write(vectors: int) -> None:
                self._panel(vectors, panel, begin, end, source, place)

            main, *rest = self.weight_groups
            when(not rest or unit < main.count, lambda: write(main.vectors), lambda: write(rest[0].vectors))
        self._finish_block(first_block, behind_block, begin, end)

    def _panel(self, vectors: int, weight: Expr, begin: Expr, end: Expr, source: Expr, place: Expr) -> None:
        """One position, one group of output blocks, every group of tiles of a block."""
        tile_row = self.grid.rows * self.lanes
        with loop(end, begin) as group:
            slot = bind(group - begin)
            panel = bind(source + slot * (self.input_blocks * tile_row))
            result = bind(place + slot * tile_row)

            def write(rows: int) -> None:
                self._product(rows, vectors, panel, weight, slot, result)

            everywhere = self.grid.longer == self.grid.groups
            when(
                everywhere or group < self.grid.longer, lambda: write(self.grid.rows), lambda: write(self.grid.rows - 1)
            )

    def _product(self, rows: int, vectors: int, source: Expr, weight: Expr, slot: Expr, place: Expr) -> None:
        """One register tile: ``rows`` tiles times ``vectors`` output blocks, summed over the input channels."""
        lanes = self.lanes
        tile = RegisterTile(rows * vectors, lanes)
        tile.fill(0.0)

        # Meanwhile bring the next panel of weights into L2: a share of it with each group of tiles.
        lines = -(-vectors // self.groups_per_block)
        share = bind(tirx.min(slot, -(-vectors // lines) - 1) * (self.spec.c * lines * lanes))
        ahead = bind(weight + self.spec.c * vectors * lanes + share)

        def accumulate(block: Expr, channels: int) -> None:
            panel = bind(source + block * (self.grid.rows * lanes))
            panel_weight = bind(weight + block * (lanes * vectors * lanes))
            with loop(channels) as channel:
                start = bind(panel_weight + channel * (vectors * lanes))
                columns = [in_register(load(self.weight, start + v * lanes, lanes)) for v in range(vectors)]
                for line in range(lines):
                    prefetch(self.weight, ahead + ((block * lanes + channel) * lines + line) * lanes, 2)
                element = bind(panel + channel)
                for row in range(rows):
                    value = in_register(broadcast(self.transformed[element + row * lanes], lanes))
                    for v, column in enumerate(columns):
                        tile.multiply_add(row * vectors + v, value, column)

        whole, tail = divmod(self.spec.c, lanes)
        if whole:
            with loop(whole) as block:
                accumulate(block, lanes)
        if tail:
            accumulate(whole, tail)
        for row in range(rows):
            for v in range(vectors):
                at = place + (v * self.groups_per_block * self.grid.rows + row) * lanes
                store(self.products, at, tile[row * vectors + v], lanes)

    def _finish_block(self, first_block: Expr, behind_block: Expr, begin: Expr, end: Expr) -> None:
        """Transform the products of a block of tiles and a slice of output blocks back, and store them."""
        staging = self.patches.allocate_staging()

        def finish(value: Expr, at: VectorAt) -> None:
            self.output.store(value, at)

        with loop(behind_block, first_block) as block, loop(end, begin) as group, loop(self._rows_of(group)) as row:
            tile = bind(self.grid.first_tile(group) + row)
            slot = ((block - first_block) * self.groups_per_block + group - begin) * self.grid.rows + row
            place = bind(slot * self.lanes)
            self.patches.transform_output(self.products, place, self.product_stride, tile, staging, block, finish)
