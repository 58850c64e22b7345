"""Loops shared by the kernels that treat every channel alone: depthwise convolution and pooling, in blocked layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from ...machines.target import Target
from ..parallelism import shared_loop
from ..vector.builder import bind, loop
from .spatial import TileRun, Window, balanced_split, tile_runs

Expr = Any

VECTOR_BYTES = 64  # of one element of a plane, nearly enough
UNITS_PER_CORE = 4  # enough that threads finish together; each unit also costs a division or two
RESERVED_REGISTERS = 4  # for weights and inputs beside the accumulators of a tile


def tap_bounds(window: Window, position: Expr) -> tuple[Expr, Expr]:
    """First tap, and one past the last, that fall inside the input for a position known only at run time."""
    first_read = position * window.stride - window.pad
    begin = tirx.max((window.dilation - 1 - first_read) // window.dilation, 0)
    end = tirx.min((window.size - 1 - first_read) // window.dilation + 1, window.kernel)
    return bind(begin), bind(end)


def row_pieces(planes: int, rows: int, target: Target) -> int:
    """Pieces to cut each of ``planes`` images of ``rows`` rows into, so that all cores get equal work."""
    wanted = UNITS_PER_CORE * target.cores
    return min(rows, -(-wanted // planes))


def piece_counts(planes: int, rows: int, target: Target) -> list[int]:
    """Numbers of pieces to try for each of ``planes`` images of ``rows`` rows, the usual one first."""
    usual = row_pieces(planes, rows, target)
    others = (1, target.cores, 2 * usual, rows)
    return list(
        dict.fromkeys((usual, *(count for count in others if count <= rows and count * planes >= target.cores)))
    )


def tile_widths(window: Window, target: Target, taps: int) -> list[int]:
    """Widths of register tiles that waste no columns and spill nothing, the widest first; see :func:`widest_tile`."""
    widest = widest_tile(window, target, taps)
    return list(dict.fromkeys(max(balanced_split(window.out, limit)) for limit in range(widest, 3, -1))) or [widest]


def widest_tile(window: Window, target: Target, taps: int) -> int:
    """Columns of a register tile that keeps ``taps`` weights, and a few inputs, in registers as well."""
    return max(1, min(window.out, target.vector_registers // 2, target.vector_registers - taps - RESERVED_REGISTERS))


def for_each_tile(
    planes: int,
    rows: Window,
    columns: Window,
    width: int,
    pieces: int,
    write_tile: Callable[[Expr, Expr, Expr, TileRun], None],
) -> None:
    """Loop over planes (image and channel block), rows, and column tiles: ``write_tile(plane, y, x, run)``."""
    bytes_moved = planes * VECTOR_BYTES * (rows.size * columns.size + rows.out * columns.out)
    with shared_loop((planes, pieces), bytes_moved=bytes_moved) as (plane, piece):
        begin = 0 if pieces == 1 else bind(piece * rows.out // pieces)
        end = rows.out if pieces == 1 else bind((piece + 1) * rows.out // pieces)
        with loop(end, begin) as y:
            for run in tile_runs(columns, width):
                with loop(run.count) as index:
                    write_tile(plane, y, bind(run.start + index * run.width), run)
