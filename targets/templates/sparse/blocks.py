"""Products with weights of which whole blocks are zero: only stored blocks are read and multiplied.

    for unit in parallel(image, piece of the rows, piece of the output blocks):
        for row tile, column tile, output block:
            tile = 0
            for stored block of this output block:
                for input in block:
                    tile[position, vector] += broadcast(x[position, place of the block + input]) * weight[vector]
            store(epilogue(tile))

The places of the inputs are read from a table, so the code is one loop whatever the pattern is. A stored block is read
once for a whole tile of positions, and a tile's positions stay in a near cache from one output block to the next. The
table is ``[first stored block of each output block, and the end | the output block itself | place of each stored
block's inputs]``, output blocks in the order in which the pieces take them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....ir.blocks import cut_blocks, filled_blocks
from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..machine_model import BROADCAST_CYCLES, LATENCY_CYCLES, MULTIPLY_ADDS
from ..parallelism import balance, chunk_loop, even_tile, shared_loop
from ..vector.builder import Output, RegisterTile, bind, broadcast, load, loop, make_prim_func, store, when
from ..vector.operand_types import check_weight_shape
from ..vector.vectors import lane_slice, pieces
from ..windows.spatial import balanced_split
from .spec import BlockSparseSpec, SparseConv2dSpec, SparseKnobs, SparseLinearSpec

__all__ = ["SparseConv2dSpec", "SparseKnobs", "SparseLinearSpec", "build", "candidates", "pack_weight"]

_SHOWN = 12  # tiles that tuning may try
_LINE, _SETS = 64, 64  # bytes of a line of L1, and how many places there are for one


def supports(spec: BlockSparseSpec, target: Cpu) -> bool:
    """Whether blocks are whole vectors of outputs, and their inputs lie side by side in channel blocks."""
    lanes = target.lanes()
    is_side_by_side = lanes % spec.block_inputs == 0 or isinstance(spec, SparseLinearSpec)
    return spec.block_outputs % lanes == 0 and is_side_by_side and _most_positions(spec, target) > 0


def _most_positions(spec: BlockSparseSpec, target: Cpu) -> int:
    """Positions that fit a register tile: their sums, the vectors of a weight, and one number of the input."""
    vectors = spec.block_outputs // target.lanes()
    return (target.vector_registers - vectors - 1) // max(1, vectors)


def candidates(spec: BlockSparseSpec, target: Cpu) -> list[SparseKnobs]:
    """Feasible knobs, best analytic guess first."""
    rows, columns = spec.positions
    most = _most_positions(spec, target)
    tiles = set()
    for width in range(1, min(most, columns) + 1):
        width = max(balanced_split(columns, width))
        for height in range(1, min(most // width, rows) + 1):
            tiles.add((max(balanced_split(rows, height)), width))
    ranked = sorted(tiles, key=lambda tile: (_cost(spec, target, *tile), tile))[:_SHOWN]
    found = []
    for height, width in ranked:
        split = balance(spec.images, (-(-rows // height), spec.output_blocks), target.cores)
        found.append(SparseKnobs(height, width, *split))
    return found


def _cost(spec: BlockSparseSpec, target: Cpu, height: int, width: int) -> float:
    """Estimated cycles of one stored input over all positions of an image."""
    rows, columns = spec.positions
    vectors = spec.block_outputs // target.lanes()
    tiles = -(-rows // height) * -(-columns // width)
    arithmetic = max(height * width * vectors / MULTIPLY_ADDS, LATENCY_CYCLES)
    return tiles * (arithmetic * _crowding(spec, target, height, width) + BROADCAST_CYCLES * height * width + vectors)


def _crowding(spec: BlockSparseSpec, target: Cpu, height: int, width: int) -> float:
    """Lines that a tile reads for one input and that share a set of L1, over what the set holds; 1 if all fit.

    Rows of a matrix that are a power of two long lie in a few sets, and would push each other out of the cache before
    the next input of the same line is read.
    """
    ways = max(1, target.l1_bytes // (_LINE * _SETS))
    _, row, column = spec.steps(target)
    places = itertools.product(range(height), range(width))
    sets = Counter((down * row + across * column) * 4 // _LINE % _SETS for down, across in places)
    return max(1.0, max(sets.values()) / ways)


def pack_weight(
    spec: BlockSparseSpec, target: Cpu, knobs: SparseKnobs, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored blocks of a weight [outputs, inputs], and the table of where they belong; flat.

    Raises
    ------
    ValueError
        When more than ``spec.kept`` blocks hold a number other than zero.
    """
    check_weight_shape(weight, (spec.outputs, spec.inputs))
    size = spec.block_inputs * spec.block_outputs
    if weight.is_meta:
        return weight.new_empty(max(1, spec.kept) * size), weight.new_empty(_table_size(spec), dtype=torch.int32)
    blocks = cut_blocks(weight, spec.block_inputs, spec.block_outputs)
    stored = filled_blocks(weight, spec.block_inputs, spec.block_outputs)
    counts = stored.sum(1)
    if int(counts.sum()) > spec.kept:
        raise ValueError(f"{int(counts.sum())} blocks of the weight are not zero, more than the {spec.kept} of {spec}")
    order = torch.tensor(_order(counts.tolist(), knobs.output_chunks))
    output, column = stored[order].nonzero(as_tuple=True)
    values = weight.new_zeros(max(1, spec.kept), spec.block_inputs, spec.block_outputs)
    values[: len(output)] = blocks[order[output], column]
    places = torch.zeros(max(1, spec.kept), dtype=torch.int32)
    places[: len(output)] = spec.offsets(target)[column * spec.block_inputs]
    ends = counts[order].cumsum(0)
    table = torch.cat([torch.zeros(1, dtype=torch.int64), ends, order, places.long()])
    return values.reshape(-1), table.to(torch.int32)


def stored_blocks(weight: torch.Tensor, blocks: tuple[int, ...]) -> tuple[int, int, int] | None:
    """What a spec says of blocks: outputs and inputs of one, and how many are stored.

    None where ``blocks`` (inputs, outputs, how many at most are not zero) is empty, does not divide the inputs of a
    weight [outputs, inputs], or is not true of it.
    """
    if not blocks or weight.shape[1] % blocks[0]:
        return None
    inputs, outputs, kept = blocks
    if not weight.is_meta and int(filled_blocks(weight, inputs, outputs).sum()) > kept:
        return None
    return outputs, inputs, kept


def _table_size(spec: BlockSparseSpec) -> int:
    return 2 * spec.output_blocks + 1 + max(1, spec.kept)


def _order(counts: Sequence[int], chunks: int) -> list[int]:
    """Output blocks such that pieces of the order, as `chunk_loop` cuts them, have about as many stored blocks."""
    blocks = len(counts)
    sizes = [(chunk + 1) * blocks // chunks - chunk * blocks // chunks for chunk in range(chunks)]
    taken: list[list[int]] = [[] for _ in sizes]
    sums = [0] * chunks
    for block in sorted(range(blocks), key=lambda one: -counts[one]):  # the largest first, where least is yet
        chunk = min((c for c in range(chunks) if len(taken[c]) < sizes[c]), key=sums.__getitem__)
        taken[chunk].append(block)
        sums[chunk] += counts[block]
    return list(itertools.chain.from_iterable(map(sorted, taken)))


def build(spec: BlockSparseSpec, target: Cpu, knobs: SparseKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, stored blocks, table, *epilogue buffers, out)``; see `pack_weight`."""
    inputs = (
        BufferSpec("x", spec.input_size(target)),
        BufferSpec("weight", max(1, spec.kept) * spec.block_inputs * spec.block_outputs),
        BufferSpec("table", _table_size(spec), "int32"),
    )
    output = BufferSpec("out", spec.output_size(target), epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        _Writer(spec, target, knobs, buffers, out).write()

    return make_prim_func("block_sparse", inputs, output, body, epilogue)


@dataclass(frozen=True)
class _Tile:
    """Positions whose sums are in registers at once, and where sums are put before an epilogue reads them."""

    image: Index
    row: Index
    column: Index
    rows: int
    columns: int
    staging: Buffer | None

    def places(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(self.rows), range(self.columns))


class _Writer:
    """Writes the loops, from the outermost inwards."""

    def __init__(
        self, spec: BlockSparseSpec, target: Cpu, knobs: SparseKnobs, buffers: Sequence[Buffer], out: Output
    ) -> None:
        self.spec, self.target, self.knobs, self.out = spec, target, knobs, out
        self.x, self.weight, self.table = buffers
        self.lanes = target.lanes()
        self.vectors = spec.block_outputs // self.lanes

    def write(self) -> None:
        spec, knobs = self.spec, self.knobs
        rows, columns = spec.positions
        row_tiles, column_tiles = -(-rows // knobs.rows), -(-columns // knobs.columns)
        extents = (spec.images, knobs.row_chunks, knobs.output_chunks)
        with shared_loop(extents, macs=spec.macs, bytes_moved=4 * spec.kept * spec.block_outputs) as indices:
            image, row_chunk, output_chunk = indices
            staging = None
            if self.out.epilogue is not NO_EPILOGUE:
                size = knobs.rows * knobs.columns * spec.block_outputs
                staging = T.alloc_buffer((size,), "float32", align=64)

            def tiles(rows: int, first_row: Index) -> None:
                def tile(columns: int, first_column: Index) -> None:
                    at = _Tile(image, bind(first_row), bind(first_column), rows, columns, staging)
                    with chunk_loop(output_chunk, knobs.output_chunks, spec.output_blocks) as slot:
                        self._output_block(at, slot)

                with loop(column_tiles) as index:
                    even_tile(index, column_tiles, columns, tile)

            with chunk_loop(row_chunk, knobs.row_chunks, row_tiles) as index:
                even_tile(index, row_tiles, rows, tiles)

    def _output_block(self, at: _Tile, slot: Index) -> None:
        """All sums of one tile and one block of outputs."""
        spec = self.spec
        blocks = spec.output_blocks
        begin, end = bind(self.table[slot]), bind(self.table[slot + 1])
        block = bind(self.table[blocks + 1 + slot])
        image, row, column = spec.steps(self.target)
        base = bind(at.image * image + at.row * row + at.column * column)
        sums = RegisterTile(at.rows * at.columns * self.vectors, self.lanes)
        sums.fill(0)
        with loop(end, begin) as stored:
            place = bind(base + self.table[2 * blocks + 1 + stored])
            weights = bind(stored * (spec.block_inputs * spec.block_outputs))
            for number in range(spec.block_inputs):
                vectors = [
                    bind(load(self.weight, weights + (number * self.vectors + vector) * self.lanes, self.lanes))
                    for vector in range(self.vectors)
                ]
                for index, (down, across) in enumerate(at.places()):
                    value = bind(broadcast(self.x[place + (down * row + across * column + number)], self.lanes))
                    for vector, weight in enumerate(vectors):
                        sums.multiply_add(index * self.vectors + vector, value, weight)
        self._finish(at, block, sums)

    def _finish(self, at: _Tile, block: Index, sums: RegisterTile) -> None:
        """Apply the epilogue, and store what the result has elements for.

        A real epilogue reads the sums back from memory, position by position in loops: written out for each vector of
        the tile, it would be too much code.
        """
        spec, width = self.spec, self.spec.block_outputs
        if at.staging is not None:
            for index in range(sums.count):
                store(at.staging, index * self.lanes, sums[index], self.lanes)

        def write(count: int) -> None:
            if at.staging is None:
                for index, (down, across) in enumerate(at.places()):
                    self._store(at, block, (down, across), count, self._from_registers(sums, index))
                return
            with loop(at.rows) as down, loop(at.columns) as across:
                first = bind((down * at.columns + across) * width)
                self._store(at, block, (down, across), count, self._from_memory(at.staging, first))

        tail = spec.tail(self.target)
        when(
            block < spec.output_blocks - 1 if tail < width else True,
            lambda: write(width),
            lambda: write(tail),
        )

    def _from_registers(self, sums: RegisterTile, position: int) -> Callable[[int, int], Expr]:
        def value(start: int, lanes: int) -> Expr:
            vector = position * self.vectors + start // self.lanes
            return lane_slice(sums[vector], start % self.lanes, lanes)

        return value

    def _from_memory(self, staging: Buffer, first: Index) -> Callable[[int, int], Expr]:
        return lambda start, lanes: load(staging, first + start, lanes)

    def _store(
        self, at: _Tile, block: Index, place: tuple[Index, Index], count: int, value: Callable[[int, int], Expr]
    ) -> None:
        """The first ``count`` outputs of a block at one position."""
        position = (at.image, at.row + place[0], at.column + place[1])
        for start, lanes in pieces(count, self.lanes):
            output = block * self.spec.block_outputs + start
            self.out.store(value(start, lanes), self.spec.at(self.target, output, position, lanes))
