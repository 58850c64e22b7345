"""Which register tiles a convolution can use on a target, and in which order they are worth trying."""

from __future__ import annotations

import itertools

from ..record import Target
from .conv2d_spec import Conv2dKnobs, Conv2dSpec, output_groups
from .spatial import balanced_split, tile_runs

LOAD_CYCLES = 0.15  # what a vector load or broadcast costs beside a fused multiply-add, measured on AVX-512
LATENCY_CYCLES = 4.0  # of a fused multiply-add: a smaller tile waits for its own results
CODE_PENALTY = 1e-4  # relative cost of each multiply-add in the code: compile time and instruction cache
MOST_VECTORS = 4
MOST_ROWS = 7


def feasible_positions(target: Target, vectors: int) -> int:
    """Output positions that fit a register tile: accumulators, one weight vector each, and one broadcast value."""
    return (target.vector_registers - vectors - 1) // vectors


def step_cycles(vectors: int, positions: int) -> float:
    """Estimated cycles for one input channel and tap of a register tile: two multiply-adds a cycle."""
    return max(vectors * positions / 2, LATENCY_CYCLES) + LOAD_CYCLES * (vectors + positions)


def estimate_cycles(spec: Conv2dSpec, target: Target, knobs: Conv2dKnobs) -> float:
    """Estimated cycles of the whole convolution on one thread, cache misses left out."""
    rows, columns = spec.windows()
    heights = balanced_split(rows.out, knobs.rows)
    widths = balanced_split(columns.out, knobs.columns)
    steps = spec.n * spec.kernel[0] * spec.kernel[1] * spec.input_block(target)
    cycles = 0.0
    for groups in output_groups(spec, target, knobs.vectors):
        per_step = sum(
            heights.count(h) * widths.count(w) * step_cycles(groups.vectors, h * w)
            for h, w in itertools.product(set(heights), set(widths))
        )
        cycles += groups.count * groups.span * steps * per_step
    return cycles


def candidates(spec: Conv2dSpec, target: Target) -> list[Conv2dKnobs]:
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


def _rank(spec: Conv2dSpec, target: Target, knobs: Conv2dKnobs) -> float:
    return estimate_cycles(spec, target, knobs) * (1 + CODE_PENALTY * code_size(spec, target, knobs))


def code_size(spec: Conv2dSpec, target: Target, knobs: Conv2dKnobs) -> int:
    """Multiply-adds written out in the code: one body for each tile shape and each set of taps at a border."""
    rows, columns = spec.windows()
    row_bodies = 1 if knobs.rows == 1 else sum(len(run.taps) for run in tile_runs(rows, knobs.rows))
    column_bodies = sum(len(run.taps) for run in tile_runs(columns, knobs.columns))
    per_body = sum(groups.vectors for groups in output_groups(spec, target, knobs.vectors))
    return row_bodies * column_bodies * knobs.rows * knobs.columns * per_body


def _blocking(spec: Conv2dSpec, target: Target, vectors: int, rows: int, columns: int) -> Conv2dKnobs:
    """Cache blocking and thread units for a register tile."""
    return Conv2dKnobs(vectors, rows, columns, spatial_units=len(balanced_split(spec.windows()[0].out, rows)))
