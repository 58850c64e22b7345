"""Which register tiles a convolution can use on a target, and in which order they are worth trying."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from ...machines.target import Cpu
from ..machine_model import L2_WEIGHT_CYCLES, L3_WEIGHT_CYCLES, tile_cycles
from ..windows.spatial import balanced_split, tile_runs
from .spec import Conv2dKnobs, Conv2dSpec, output_groups

CODE_PENALTY = 1e-4  # relative cost of each multiply-add in the code: compile time and instruction cache
PREFETCH_VECTORS = 64  # 4 KiB ahead on AVX-512
IMBALANCE_TOLERANCE = 0.03  # weights that stay in cache are worth this much
MOST_VECTORS = 4
MOST_ROWS = 7


def feasible_positions(target: Cpu, vectors: int) -> int:
    """Output positions that fit a register tile: accumulators, one weight vector each, and one broadcast value."""
    return (target.vector_registers - vectors - 1) // vectors


def weights_stay_in_l2(spec: Conv2dSpec, target: Cpu, vectors: int) -> bool:
    """Whether all packed weights take at most half of the second-level cache."""
    groups = output_groups(spec, target, vectors)
    rows = sum(g.count * g.vectors * g.span for g in groups) * spec.input_block(target)
    return rows * spec.taps * target.vector_bytes <= target.l2_bytes // 2


def estimate_cycles(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> float:
    """Estimated cycles of the whole convolution on one thread."""
    rows, columns = spec.windows()
    heights = Counter(balanced_split(rows.out, knobs.rows))
    widths = Counter(balanced_split(columns.out, knobs.columns))
    resident = weights_stay_in_l2(spec, target, knobs.vectors)
    weight_cycles = L2_WEIGHT_CYCLES if resident else L3_WEIGHT_CYCLES
    steps = spec.images * spec.taps * spec.input_block(target)
    cycles = 0.0
    for groups in output_groups(spec, target, knobs.vectors):
        per_step = sum(
            heights[h] * widths[w] * tile_cycles(groups.vectors, h * w, weight_cycles, target)
            for h, w in itertools.product(heights, widths)
        )
        cycles += groups.count * groups.span * steps * per_step
    return cycles


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dKnobs]:
    """Feasible knobs, the best analytic guess first; a tile never needs more registers than the target has."""
    rows, columns = spec.windows()
    tiles: dict[tuple[int, int, int], Conv2dKnobs] = {}
    for vectors in range(1, min(MOST_VECTORS, spec.output_blocks(target)) + 1):
        positions = feasible_positions(target, vectors)
        most_rows = positions if spec.pointwise else MOST_ROWS
        for height in range(1, min(positions, rows.out, most_rows) + 1):
            height = max(balanced_split(rows.out, height))
            width = max(balanced_split(columns.out, positions // height))
            if spec.pointwise and height < min(positions, rows.out) // 2:
                continue
            tiles[vectors, height, width] = _blocking(spec, target, vectors, height, width)
    return sorted(tiles.values(), key=lambda knobs: _rank(spec, target, knobs))


def _rank(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> float:
    penalty = 1 + CODE_PENALTY * code_size(spec, target, knobs)
    return estimate_cycles(spec, target, knobs) * imbalance(spec, target, knobs) * penalty


def code_size(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> int:
    """Multiply-adds written out in the code: one body for each tile shape and each set of taps at a border."""
    rows, columns = spec.windows()
    row_bodies = 1 if knobs.rows == 1 else sum(run.ranges for run in tile_runs(rows, knobs.rows))
    column_bodies = sum(run.ranges for run in tile_runs(columns, knobs.columns))
    per_body = sum(groups.vectors for groups in output_groups(spec, target, knobs.vectors))
    return row_bodies * column_bodies * knobs.rows * knobs.columns * per_body


def _blocking(spec: Conv2dSpec, target: Cpu, vectors: int, rows: int, columns: int) -> Conv2dKnobs:
    """Cache blocking and thread units for a register tile."""
    units = len(balanced_split(spec.windows()[0].out, rows))
    prefetch = 0 if weights_stay_in_l2(spec, target, vectors) else PREFETCH_VECTORS
    knobs = Conv2dKnobs(vectors, rows, columns, spatial_units=units, prefetch=prefetch)
    by_rows = replace(knobs, order="rows")
    better = imbalance(spec, target, by_rows) < imbalance(spec, target, knobs) - IMBALANCE_TOLERANCE
    return by_rows if better else knobs


def imbalance(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> float:
    """Work of the busiest thread relative to an even split, with one thread on each core; 1 is perfect."""
    groups = [g.vectors for g in output_groups(spec, target, knobs.vectors) for _ in range(g.count)]
    heights = balanced_split(spec.windows()[0].out, knobs.rows)
    nested = (groups, heights) if knobs.order == "weights" else (heights, groups)
    work = [a * b for a, b in itertools.product(*nested)] * spec.images
    share = -(-len(work) // target.cores)
    busiest = max(sum(work[begin : begin + share]) for begin in range(0, len(work), share))
    return busiest * target.cores / sum(work)
