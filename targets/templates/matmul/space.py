"""Every way to cut up a matrix product that tuning may try: register tiles times sharing, unrolling and prefetching.

`matmul_spec` ranks register tiles by a model and completes each of them in one or two ways; here the best of them are
completed in every way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from ...machines.target import Cpu
from . import spec as matmul_spec
from .spec import ACTIVATION, MatmulKnobs, MatmulSpec

VARIED_TILES = 5  # of the ranked register tiles
UNROLLS = (2, 4, 8)
MOST_ACCUMULATIONS = 112  # multiply-adds written out in the inner loop
PREFETCHES = (0, 1024, 2048, 4096)  # bytes ahead


def candidates(spec: MatmulSpec, target: Cpu, fewest_vectors: int = 1) -> list[MatmulKnobs]:
    """Feasible knobs, the best analytic guess first; a tile never needs more registers than the target has."""
    ranked = matmul_spec.candidates(spec, target, fewest_vectors)
    found = dict.fromkeys(ranked[:1])
    tiles = list(dict.fromkeys((knobs.rows, knobs.vectors) for knobs in ranked))[:VARIED_TILES]
    for knobs in ranked:
        if (knobs.rows, knobs.vectors) in tiles:
            found.update(dict.fromkeys(_variants(spec, target, knobs)))
    found.update(dict.fromkeys(ranked))
    return list(found)


def _variants(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> Iterator[MatmulKnobs]:
    """All ways to use one register tile."""
    size = knobs.rows * knobs.vectors
    unrolls = [unroll for unroll in UNROLLS if unroll == knobs.unroll or unroll * size <= MOST_ACCUMULATIONS]
    shares = dict.fromkeys(((knobs.column_chunks, knobs.row_chunks), *_shares(spec, target, knobs)))
    for share, unroll, chains, ahead in itertools.product(
        shares, unrolls, _chains(spec, target, knobs), _prefetches(spec, knobs)
    ):
        yield replace(
            knobs, column_chunks=share[0], row_chunks=share[1], unroll=unroll, chains=chains, prefetch_bytes=ahead
        )


def _shares(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> Iterator[tuple[int, int]]:
    """Pieces of columns and rows that give every thread work, threads dividing one or the other."""
    panels, tiles = knobs.panels(spec, target), knobs.row_tiles(spec)
    if spec.batch_size >= target.cores:
        yield 1, 1
    for pieces in (target.cores, 4 * target.cores):
        if pieces <= panels:
            yield pieces, 1
        if pieces <= tiles:
            yield 1, pieces


def _chains(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> list[int]:
    """Numbers of independent sums whose accumulators fit the registers; one where there are many anyhow."""
    free = target.vector_registers - knobs.vectors - 1
    size = knobs.rows * knobs.vectors
    return sorted({knobs.chains, *(chains for chains in (1, 2, 4) if size * chains <= free and size <= 8)})


def _prefetches(spec: MatmulSpec, knobs: MatmulKnobs) -> list[int]:
    """Only a packed weight is worth prefetching: an activation has just been computed."""
    if spec.rhs == ACTIVATION:
        return [knobs.prefetch_bytes]
    return sorted({knobs.prefetch_bytes, *PREFETCHES})
