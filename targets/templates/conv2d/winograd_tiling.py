"""How Winograd convolutions may be tiled on a target, what each way costs, and in which order they are worth trying.

The costs are in the unit of :func:`tersor.targets.templates.conv2d.tiling.estimate_cycles`: the algorithms compare.
"""

from __future__ import annotations

import itertools

from ...machines.target import Cpu
from ..machine_model import CACHED_BYTES, L3_BYTES, L3_WEIGHT_CYCLES, LAUNCH_CYCLES, MEMORY_BYTES, tile_cycles
from .spec import Conv2dSpec, output_groups
from .tiling import MOST_VECTORS, feasible_positions
from .winograd_spec import TileGrid, WinogradKnobs, packed_size
from .winograd_transforms import TILES, relative_error

# Measured on AVX-512, for one vector of channels and each position of a patch.
INPUT_CYCLES = {2: 5.0, 4: 5.7, 6: 5.7}
OUTPUT_CYCLES = {2: 3.0, 4: 3.4, 6: 6.0}
ACCUMULATOR_CYCLES = 2.2  # clearing and storing one accumulator of a register tile
EXPOSED = 0.25  # share of the shorter of arithmetic and weight traffic that prefetching fails to hide behind the longer
USABLE_L2 = 0.5  # share of L2 that weights or intermediate results may fill and stay there
ALLOWED_ERROR = 2e-5  # of one layer, relative to its largest output; a network may have dozens of layers
WIDE_TILE_PENALTY = {2: 1.0, 4: 1.0, 6: 1.08}  # the widest must win by this much: less accurate, twice the code
MOST_CANDIDATES = 160


def candidates(spec: Conv2dSpec, target: Cpu) -> list[WinogradKnobs]:
    """Feasible and accurate enough knobs, the best analytic guess first; no register tile ever spills."""
    found: dict[WinogradKnobs, None] = {}
    tiles = [m for m in TILES if relative_error(m, spec.c) <= ALLOWED_ERROR]
    for m, vectors in itertools.product(tiles, _vector_counts(spec, target)):
        rows = feasible_positions(target, vectors)
        grid = TileGrid.of(spec, WinogradKnobs(m, vectors, rows))
        units = -(-spec.output_blocks(target) // vectors)
        for blocks, slices in itertools.product(_counts(grid.groups, target.cores), _counts(units, target.cores)):
            found[WinogradKnobs(m, vectors, grid.rows, blocks, slices, "tiles")] = None
            found[WinogradKnobs(m, vectors, grid.rows, blocks, slices, "outputs")] = None
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
    if knobs.order == "tiles":
        busy = _share(blocks, grid.groups, cores)
        overhead = cores * LAUNCH_CYCLES
    else:
        busy = _share(slices * blocks, units * grid.groups, cores)
        overhead = 2 * cores * LAUNCH_CYCLES
    multiply, streamed = busy * multiply, busy * _weight_cycles(spec, target, knobs, blocks)
    products = max(multiply, streamed) + EXPOSED * min(multiply, streamed)
    spilled = _spilled_bytes(spec, target, knobs, grid, blocks, slices) / L3_BYTES
    return products + busy * (transform + finish + spilled) + overhead


def _share(pieces: int, units: int, cores: int) -> float:
    """Time of the busiest core relative to an even split of ``units`` into ``pieces`` over ``cores``."""
    largest = -(-units // pieces)
    return max(1.0, min(-(-pieces // cores) * largest, units) * cores / units)


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
    stays = size <= USABLE_L2 * target.l2_bytes
    passes = min(blocks, target.cores if knobs.order == "tiles" else 1) if stays else blocks
    first = size / (L3_BYTES if size <= min(CACHED_BYTES, target.l3_bytes / 2) else MEMORY_BYTES)
    return first + (passes - 1) * size / L3_BYTES


def _spilled_bytes(
    spec: Conv2dSpec, target: Cpu, knobs: WinogradKnobs, grid: TileGrid, blocks: int, slices: int
) -> float:
    """Bytes of transformed inputs and products that leave L2: fetched to be written, written, and read back."""
    inputs = 4.0 * knobs.positions * grid.tiles * spec.input_blocks(target) * target.lanes()
    products = 4.0 * knobs.positions * grid.tiles * spec.output_blocks(target) * target.lanes()
    usable = USABLE_L2 * target.l2_bytes
    excess = ((inputs + products / slices) / blocks - usable) / usable
    lost = min(max(excess, 0.0), 1.0)
    if knobs.order == "outputs":
        # Other cores have transformed most of what a core reads.
        return inputs * (1 + (slices - 1) * lost) + 3 * products * lost
    return lost * (inputs * (2 + slices) + 3 * products)
