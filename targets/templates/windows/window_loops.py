"""Loops shared by the kernels that treat every channel alone: depthwise convolution and pooling, in blocked layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from ...machines.target import Cpu
from ..base import Expr
from ..parallelism import shared_loop
from ..vector.builder import bind, loop, when
from .spatial import TapRange, TileRun, Window, balanced_split, tile_runs

VECTOR_BYTES = 64  # of one element of a plane, nearly enough
UNITS_PER_CORE = 4  # enough that threads finish together; each unit also costs a division or two
RESERVED_REGISTERS = 4  # for weights and inputs beside the accumulators of a tile
UNROLLED_TAPS = 16  # of a kernel row; a longer one is a loop


def tap_bounds(window: Window, position: Expr) -> tuple[Expr, Expr]:
    """First tap, and one past the last, that fall inside the input for a position known only at run time."""
    first_read = position * window.stride - window.pad
    begin = tirx.max((window.dilation - 1 - first_read) // window.dilation, 0)
    end = tirx.min((window.size - 1 - first_read) // window.dilation + 1, window.kernel)
    return bind(begin), bind(end)


def for_each_range(window: Window, run: TileRun, start: Expr, visit: Callable[[TapRange], None]) -> None:
    """``visit(taps)`` for the tap ranges of the tile of ``run`` at ``start``.

    What the run does not know is found at run time: the taps that all positions of the tile read are one range, whose
    bounds are expressions; each tap before and behind is asked for every position, which only tiles at a border do.
    """
    if run.taps is not None:
        for taps in run.taps:
            visit(taps)
        return
    bounds = [tap_bounds(window, start + position) for position in range(run.width)]
    if run.width == 1:
        visit(TapRange(*bounds[0], (0,)))
        return
    low = bind(tirx.min(bounds[0][0], window.kernel))
    high = bind(tirx.max(bounds[-1][1], low))
    visit(TapRange(low, high, tuple(range(run.width))))
    first, behind = bounds[-1][0], bounds[0][1]
    before = bind(tirx.max(low - first, 0))
    with loop(bind(before + tirx.max(behind - high, 0))) as index:
        tap = bind(tirx.Select(index < before, first + index, high + (index - before)))
        for position, (begin, end) in enumerate(bounds):
            alone = TapRange(tap, tap + 1, (position,))
            when(tirx.And(begin <= tap, tap < end), partial(visit, alone))


def for_each_tap(window: Window, run: TileRun, start: Expr, visit: Callable[[Expr, tuple[int, ...]], None]) -> None:
    """``visit(tap, positions that read it)`` for the tile of ``run`` at ``start``.

    The taps of a short kernel are written out; those of a longer one, and those that the run does not know, are loops.
    """

    def visit_range(taps: TapRange) -> None:
        if run.taps is not None and window.kernel <= UNROLLED_TAPS:
            for tap in range(taps.begin, taps.end):
                visit(tap, taps.positions)
        else:
            with loop(taps.end, taps.begin) as tap:
                visit(tap, taps.positions)

    for_each_range(window, run, start, visit_range)


def row_pieces(planes: int, rows: int, target: Cpu) -> int:
    """Pieces to cut each of ``planes`` images of ``rows`` rows into, so that all cores get equal work."""
    wanted = UNITS_PER_CORE * target.cores
    return min(rows, -(-wanted // planes))


def piece_counts(planes: int, rows: int, target: Cpu) -> list[int]:
    """Numbers of pieces to try for each of ``planes`` images of ``rows`` rows, the usual one first."""
    usual = row_pieces(planes, rows, target)
    others = (1, target.cores, 2 * usual, rows)
    return list(
        dict.fromkeys((usual, *(count for count in others if count <= rows and count * planes >= target.cores)))
    )


def tile_widths(window: Window, target: Cpu, taps: int) -> list[int]:
    """Widths of register tiles that waste no columns and spill nothing, the widest first; see :func:`widest_tile`."""
    widest = widest_tile(window, target, taps)
    return list(dict.fromkeys(max(balanced_split(window.out, limit)) for limit in range(widest, 3, -1))) or [widest]


def widest_tile(window: Window, target: Cpu, taps: int) -> int:
    """Columns of a register tile that keeps ``taps`` weights, and a few inputs, in registers as well.

    Where the taps are a loop, one weight is needed at a time.
    """
    weights = taps if taps <= UNROLLED_TAPS else 1
    return max(1, min(window.out, target.vector_registers // 2, target.vector_registers - weights - RESERVED_REGISTERS))


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
