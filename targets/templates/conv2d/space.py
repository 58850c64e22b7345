"""Every way to tile a direct convolution that tuning may try: register tiles times cache blocking.

`conv2d_tiling` ranks register tiles by a model and blocks each of them in one way. Here the best of them get all ways
of blocking: what the model is least sure of is the cost of loading weights, and so whether to prefetch them, to share
them among threads, or to keep a part of them in L1 while all positions are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from ...machines.target import Cpu
from . import tiling as conv2d_tiling
from .spec import Conv2dKnobs, Conv2dSpec

VARIED_TILES = 10  # of the ranked register tiles
UNROLLS = (1, 2, 4)
MOST_CODE = 450  # multiply-adds written out in all loops together: more take seconds to compile and fill the cache
L1_SHARE = 2  # a chunk of weights may fill one part in this many of L1, or of L2


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dKnobs]:
    """Feasible knobs, the best analytic guess first; a tile never needs more registers than the target has."""
    ranked = conv2d_tiling.candidates(spec, target)
    compact = [knobs for knobs in ranked if conv2d_tiling.code_size(spec, target, knobs) <= MOST_CODE]
    found = dict.fromkeys(ranked[:1])
    for knobs in (*ranked[:1], *compact[:VARIED_TILES]):
        found.update(dict.fromkeys(_blockings(spec, target, knobs)))
    found.update(dict.fromkeys(compact))
    return list(found)


def _blockings(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> Iterator[Conv2dKnobs]:
    """All ways to block a register tile, the one given first."""
    size = conv2d_tiling.code_size(spec, target, knobs)
    unrolls = [unroll for unroll in UNROLLS if unroll == knobs.unroll or unroll * size <= MOST_CODE]
    prefetches = dict.fromkeys((knobs.prefetch, 0, conv2d_tiling.PREFETCH_VECTORS))
    orders = (knobs.order, "rows" if knobs.order == "weights" else "weights")
    chunks = (0, *_chunks(spec, target, knobs.vectors))
    for chunk, order, prefetch, unroll in itertools.product(chunks, orders, prefetches, unrolls):
        units = knobs.spatial_units
        if chunk:  # every chunk goes over all rows of a unit: a unit is as large as threads allow
            units = min(units, target.cores)
        yield replace(knobs, block_chunk=chunk, order=order, prefetch=prefetch, unroll=unroll, spatial_units=units)


def _chunks(spec: Conv2dSpec, target: Cpu, vectors: int) -> list[int]:
    """Numbers of input blocks whose weights stay in L1 or in L2, where all of them do not."""
    span = max(groups.span for groups in conv2d_tiling.output_groups(spec, target, vectors))
    bytes_of_block = spec.taps * spec.input_block(target) * vectors * target.vector_bytes
    fitting = (cache // L1_SHARE // bytes_of_block for cache in (target.l1_bytes, target.l2_bytes))
    return sorted({count for count in fitting if 0 < count < span})
