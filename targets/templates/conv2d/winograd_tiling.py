"""How Winograd convolutions may be tiled on a target, what each way costs, and in which order they are worth trying.

The costs are in the unit of :func:`tersor.targets.templates.conv2d.tiling.estimate_cycles`: the algorithms compare.
"""

from __future__ import annotations

import itertools
from typing import get_args

from ...machines.target import Cpu
from ..machine_model import (
    CACHED_BYTES,
    L3_BYTES,
    L3_WEIGHT_CYCLES,
    LAUNCH_CYCLES,
    MEMORY_BYTES,
    REMOTE_BYTES,
    tile_cycles,
)
from .spec import Conv2dSpec, output_groups
from .tiling import MOST_VECTORS, feasible_positions
from .winograd_spec import Order, TileGrid, WinogradKnobs, packed_size, slice_bounds
from .winograd_transforms import TILES, relative_error

# Measured on AVX-512, for one vector of channels and each position of a patch.
INPUT_CYCLES = {2: 5.0, 3: 5.4, 4: 6.2, 5: 8.0, 6: 6.2}
OUTPUT_CYCLES = {2: 3.0, 3: 3.2, 4: 3.4, 5: 4.2, 6: 4.6}
ACCUMULATOR_CYCLES = 2.2  # clearing and storing one accumulator of a register tile
EXPOSED = 0.15  # share of the shorter of arithmetic and weight traffic that prefetching fails to hide behind the longer
USABLE_L2 = 0.5  # share of L2 that weights or intermediate results may fill and stay there
ALLOWED_ERROR = 2e-5  # of one layer, relative to its largest output; a network may have dozens of layers
WIDE_TILE_PENALTY = {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.04, 6: 1.08}  # less accurate, and more code
MOST_CANDIDATES = 320


def candidates(spec: Conv2dSpec, target: Cpu) -> list[WinogradKnobs]:
    """Feasible and accurate enough knobs, the best analytic guess first; no register tile ever spills."""
    found: dict[WinogradKnobs, None] = {}
    tiles = [m for m in TILES if relative_error(m, spec.c) <= ALLOWED_ERROR]
    for m, vectors in itertools.product(tiles, _vector_counts(spec, target)):
        rows = feasible_positions(target, vectors)
        grid = TileGrid.of(spec, WinogradKnobs(m, vectors, rows))
        units = -(-spec.output_blocks(target) // vectors)
        for blocks, slices in itertools.product(_counts(grid.groups, target.cores), _counts(units, target.cores)):
            for order in get_args(Order):
                if order != "slices" or 1 < target.cores <= slices <= 2 * target.cores:
                    found[WinogradKnobs(m, vectors, grid.rows, blocks, slices, order)] = None
    return sorted(found, key=lambda knobs: _rank(spec, target, knobs))[:MOST_CANDIDATES]


def _rank(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs) -> float:
    return estimate_cycles(spec, target, knobs) * WIDE_TILE_PENALTY[knobs.m]


def _vector_counts(spec: Conv2dSpec, target: Cpu) -> range:
    """A tile one vector wide loads as many elements as it multiplies; it is left out where there is a second vector."""
    most = min(MOST_VECTORS, spec.output_blocks(target))
    return range(min(2, most), most + 1)


def _counts(most: int, cores: int) -> list[int]:
    """Numbers of pieces to try: 1, multiples of ``cores`` by powers of two, and ``most``."""
    doubled = [cores << power for power in range(most.bit_length()) if cores << power < most]
    return sorted({1, *doubled, most})


def estimate_cycles(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs) -> float:
    """Estimated cycles of the whole convolution, summed over threads; waiting for another thread counts."""
    grid = TileGrid.of(spec, knobs)
    units = -(-spec.output_blocks(target) // knobs.vectors)
    blocks, slices = min(knobs.blocks, grid.groups), min(knobs.slices, units)
    cores = target.cores
    transform = spec.input_blocks(target) * grid.tiles * knobs.positions * INPUT_CYCLES[knobs.m]
    finish = spec.output_blocks(target) * grid.tiles * knobs.positions * OUTPUT_CYCLES[knobs.m]
    multiply = _multiply_cycles(spec, target, knobs, grid)
    overhead = cores * LAUNCH_CYCLES
    if knobs.order == "tiles":
        busy = _share(blocks, grid.groups, cores)
    elif slices >= cores:
        busy = _largest_slices(spec, target, knobs) * cores / spec.output_blocks(target)
    else:
        busy = _share(slices * blocks, units * grid.groups, cores)
    if knobs.order == "outputs":
        overhead *= 2
    elif knobs.order == "slices":
        transform *= slices
    multiply, streamed = busy * multiply, busy * _weight_cycles(spec, target, knobs, blocks)
    products = max(multiply, streamed) + EXPOSED * min(multiply, streamed)
    moved = _moved_cycles(spec, target, knobs, grid, blocks, slices)
    return products + busy * (transform + finish + moved) + overhead


def _share(pieces: int, units: int, cores: int) -> float:
    """Time of the busiest core relative to an even split of ``units`` into ``pieces`` over ``cores``."""
    largest = -(-units // pieces)
    return max(1.0, min(-(-pieces // cores) * largest, units) * cores / units)


def _largest_slices(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs) -> int:
    """Output channel blocks of the thread that has most of them."""
    bounds = slice_bounds(spec, target, knobs)
    each = -(-(len(bounds) - 1) // target.cores)
    return max(behind - first for first, behind in itertools.pairwise([*bounds[:-1:each], bounds[-1]]))


def _multiply_cycles(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, grid: TileGrid) -> float:
    cycles = 0.0
    tiles = ((grid.longer, grid.rows), (grid.groups - grid.longer, grid.rows - 1))
    for groups, (count, rows) in itertools.product(output_groups(spec, target, knobs.vectors), tiles):
        step = tile_cycles(groups.vectors, rows, L3_WEIGHT_CYCLES, target)
        each = spec.c * step + ACCUMULATOR_CYCLES * groups.vectors * rows
        cycles += groups.count * count * each
    return knobs.positions * cycles


def _weight_cycles(spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, blocks: int) -> float:
    """Cycles that all threads together spend on bringing weights into L2, once for each block of tiles."""
    size = 4.0 * packed_size(spec, target, knobs)
    together = min(blocks, target.cores) if knobs.order == "tiles" else 1  # in step: none finds what another has read
    passes = together if size <= USABLE_L2 * target.l2_bytes else blocks
    evicted = max(0.0, size - min(CACHED_BYTES, target.l3_bytes / 2))
    from_memory = evicted + (together - 1) * size
    return from_memory / MEMORY_BYTES + (passes * size - from_memory) / L3_BYTES


def _moved_cycles(
    spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, grid: TileGrid, blocks: int, slices: int
) -> float:
    """Cycles for transformed inputs and products that leave L2: fetched to be written, written, and read back."""
    inputs = 4.0 * knobs.positions * grid.tiles * spec.input_blocks(target) * target.lanes()
    products = 4.0 * knobs.positions * grid.tiles * spec.output_blocks(target) * target.lanes()
    usable = USABLE_L2 * target.l2_bytes
    excess = ((inputs + products / slices) / blocks - usable) / usable
    lost = min(max(excess, 0.0), 1.0)
    if knobs.order == "outputs":
        # Other cores have transformed most of what a core reads.
        remote = inputs * (target.cores - 1) / target.cores
        return remote / REMOTE_BYTES + (inputs * (1 + (slices - 1) * lost) + 3 * products * lost) / L3_BYTES
    passes = 3 * slices if knobs.order == "slices" else 2 + slices
    return (inputs * passes + 3 * products) * lost / L3_BYTES
