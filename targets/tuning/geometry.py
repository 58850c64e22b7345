"""How a candidate cuts its layer up, in terms that hold for every template with a register tile.

A ranker that has seen the loads of each multiply-add, the rows that a tile wastes and the threads that idle on one
template knows something about all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch

from ..machines.target import Cpu
from ..templates.attention.spec import AttentionKnobs, AttentionSpec
from ..templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from ..templates.conv2d.winograd_spec import TileGrid, WinogradKnobs
from ..templates.matmul.spec import MatmulKnobs, MatmulSpec
from ..templates.parallelism import imbalance
from ..templates.registry import Knobs, Spec
from ..templates.windows.pooling import PoolKnobs, PoolSpec

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Geometry:
    """A kernel as matrix products that register tiles are cut out of.

    Attributes
    ----------
    rows, columns
        Extents of the result, ``columns`` in elements.
    depth
        Multiply-adds of one element before its tile is left.
    tile_rows, tile_vectors
        The register tile.
    pieces
        What threads share.
    steps, chains
        Steps written out in the inner loop, and independent sums of each element.
    block_bytes
        What one piece keeps in a cache besides; 0 if nothing.
    sweep_bytes, sweeps
        What each thread reads anew for every step of the outer of its loops, and how many steps there are: the input
        for each group of output channels, or the weights for each group of rows. 0 where this is not known.
    """

    rows: int
    columns: int
    depth: int
    tile_rows: int
    tile_vectors: int
    pieces: int
    steps: int = 1
    chains: int = 1
    block_bytes: float = 0.0
    sweep_bytes: float = 0.0
    sweeps: int = 0


@singledispatch
def geometry_of(knobs: Knobs, spec: Spec, target: Cpu) -> Geometry | None:
    """How ``knobs`` cut ``spec`` up; None for templates without a register tile."""
    return None


@geometry_of.register
def _(knobs: Conv2dKnobs, spec: Conv2dSpec, target: Cpu) -> Geometry:
    taps = spec.kernel[0] * spec.kernel[1]
    depth = spec.c // spec.groups * taps
    read, weights, units = spec.c * spec.h * spec.w, spec.o * depth, _units(spec.o, knobs.vectors, target)
    swept, outer = (read, units) if knobs.order == "weights" else (weights, knobs.spatial_units)
    return Geometry(
        rows=spec.n * spec.out_h * spec.out_w,
        columns=spec.o,
        depth=knobs.block_chunk * target.lanes() * taps or depth,
        tile_rows=knobs.rows * max(1, min(knobs.columns, spec.out_w)),
        tile_vectors=knobs.vectors,
        pieces=knobs.spatial_units * units,
        steps=knobs.unroll,
        sweep_bytes=FLOAT_BYTES * swept,
        sweeps=-(-outer * spec.n // target.cores),
    )


@geometry_of.register
def _(knobs: WinogradKnobs, spec: Conv2dSpec, target: Cpu) -> Geometry:
    grid = TileGrid.of(spec, knobs)
    blocks = min(knobs.blocks, grid.groups)
    shared = knobs.order != "tiles"  # then each thread reads only its part of the weights
    slices = min(knobs.slices, _units(spec.o, knobs.vectors, target)) if shared else 1
    return Geometry(
        rows=grid.tiles,
        columns=spec.o,
        depth=spec.c,
        tile_rows=knobs.rows,
        tile_vectors=knobs.vectors,
        pieces=slices if knobs.order == "slices" else blocks * slices,
        block_bytes=FLOAT_BYTES * knobs.positions * spec.c * grid.tiles / blocks,
        sweep_bytes=FLOAT_BYTES * knobs.positions * spec.c * spec.o / (target.cores if shared else 1),
        sweeps=blocks if shared else -(-blocks // target.cores),
    )


@geometry_of.register
def _(knobs: MatmulKnobs, spec: MatmulSpec, target: Cpu) -> Geometry:
    return Geometry(
        rows=spec.m,
        columns=spec.n,
        depth=spec.k,
        tile_rows=knobs.rows,
        tile_vectors=knobs.vectors,
        pieces=spec.batch_size * knobs.column_chunks * knobs.row_chunks,
        steps=knobs.unroll,
        chains=knobs.chains,
        sweep_bytes=FLOAT_BYTES * spec.n * spec.k / knobs.column_chunks,
        sweeps=-(-knobs.row_tiles(spec) // knobs.row_chunks),
    )


@geometry_of.register
def _(knobs: AttentionKnobs, spec: AttentionSpec, target: Cpu) -> Geometry:
    return Geometry(
        rows=spec.queries,
        columns=spec.keys,
        depth=spec.width,
        tile_rows=knobs.rows,
        tile_vectors=knobs.vectors,
        pieces=math.prod(spec.batch) * knobs.row_chunks,
        steps=knobs.unroll,
    )


@geometry_of.register
def _(knobs: PoolKnobs, spec: PoolSpec, target: Cpu) -> Geometry:
    return Geometry(
        rows=spec.out_w,
        columns=target.lanes(),
        depth=spec.kernel[0] * spec.kernel[1],
        tile_rows=knobs.columns,
        tile_vectors=1,
        pieces=spec.n * _units(spec.c, 1, target) * knobs.pieces,
    )


def geometry_features(found: Geometry, target: Cpu) -> Iterator[tuple[str, float]]:
    """What decides how fast a register tile is, by name."""
    rows, vectors, lanes = found.tile_rows, found.tile_vectors, target.lanes()
    accumulators = rows * vectors * found.chains
    row_tiles = -(-found.rows // rows)
    column_vectors = -(-found.columns // lanes)
    panels = -(-column_vectors // vectors)
    yield "tile rows", rows
    yield "tile vectors", vectors
    yield "accumulators", accumulators
    yield "registers used", (accumulators + vectors + 1) / target.vector_registers
    yield "loads per multiply-add", (rows + vectors) / (rows * vectors)
    yield "written out", rows * vectors * found.steps
    yield "row fill", found.rows / (row_tiles * rows)
    yield "vector fill", column_vectors / (panels * vectors)
    yield "log row tiles", math.log2(row_tiles)
    yield "log panels", math.log2(panels)
    yield "log pieces", math.log2(found.pieces)
    yield "imbalance", imbalance(found.pieces, target.cores)
    panel_bytes = FLOAT_BYTES * found.depth * vectors * lanes
    yield "panel over l1", math.log2(panel_bytes / target.l1_bytes)
    yield "panel over l2", math.log2(panel_bytes / target.l2_bytes)
    yield "rows over l1", math.log2(FLOAT_BYTES * found.depth * rows / target.l1_bytes)
    if found.block_bytes:
        yield "block over l2", math.log2(found.block_bytes / target.l2_bytes)
    if found.sweeps:
        yield "log sweeps", math.log2(found.sweeps)
        yield "sweep over l2", math.log2(found.sweep_bytes / target.l2_bytes)


def _units(channels: int, vectors: int, target: Cpu) -> int:
    """Groups of ``vectors`` channel blocks."""
    blocks = -(-channels // target.lanes())
    return -(-blocks // vectors)
