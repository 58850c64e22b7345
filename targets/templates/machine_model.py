"""What instructions, caches and threads cost: the constants that all estimates of a kernel's time share.

Cycles were measured on AVX-512; they are for one core unless something else is said.
"""

from __future__ import annotations

from ..machines.target import Cpu

CLOCK = 3e9  # cycles a second

# Vectors multiplied and added in one cycle of a matrix product. It is the same for processors that do half of it, such
# as Zen 4 (`Cpu.multiply_adds`): they also load half as many, so that the same tiles are best.
MULTIPLY_ADDS = 2
LATENCY_CYCLES = 4.0  # of a fused multiply-add: a smaller tile waits for its own results
LOADS = 2  # that start in one cycle …
LOAD_SLACK = 1.3  # … which is never quite reached
BROADCAST_CYCLES = 0.1  # beside the multiply-adds

# One vector of weights that streams from an outer cache, beside the multiply-adds.
L2_WEIGHT_CYCLES = 0.35
L3_WEIGHT_CYCLES = 0.7

L3_BYTES = 7.0  # moved in one cycle by one core
REMOTE_BYTES = 0.8  # the same of what another core has just written
MEMORY_BYTES = 4.0  # the same from memory, when all cores read
STREAM = 15e9  # bytes a second that one thread moves from and to memory
CACHED_BYTES = 4 << 20  # of a kernel's weights: the rest is assumed to have left the caches since the last call

LAUNCH_CYCLES = 5_000  # handing one more parallel loop to a thread, and waiting for the slowest
LAUNCH_SECONDS = 2e-6  # calling a kernel and waking its threads


def tile_cycles(vectors: int, positions: int, weight_cycles: float, target: Cpu) -> float:
    """Of one input channel and tap of a register tile of a convolution.

    Where fewer vectors are multiplied in a cycle, loads hide behind the products, and Winograd's transforms pay sooner.
    """
    loads = BROADCAST_CYCLES * positions + weight_cycles * vectors
    return max(vectors * positions / target.multiply_adds, LATENCY_CYCLES) + loads


def panel_cycles(rows: int, row_tiles: int, vectors: int, chains: int = 1) -> float:
    """Of one step of ``k`` of a matrix product, for all rows and one panel of ``vectors``.

    It takes as long as its arithmetic, its loads or the latency of its sums, and half of what L2 sends of the panel;
    the other half is hidden.
    """
    arithmetic = rows * vectors / MULTIPLY_ADDS
    loads = (rows + row_tiles * vectors) / LOADS * LOAD_SLACK
    return max(arithmetic, loads, LATENCY_CYCLES * row_tiles / chains) + row_tiles * vectors / 2
