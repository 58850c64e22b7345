"""How a window (convolution, pooling) tiles one spatial axis, and which taps of each tile fall inside the input.

Padding never costs a copy: a tile at the border simply leaves out the (position, tap) pairs that would read padding.
Tiles of one width and one such pattern form a *run*, which a template writes once, inside a loop. A long window over
much padding has too many patterns to write out: then the tiles of a run find their taps at run time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

from ..base import Index

MOST_RANGES = 16  # tap ranges of an axis that are written out


@dataclass(frozen=True)
class Window:
    """A window sliding along one axis.

    Attributes
    ----------
    size, out
        Input and output positions.
    kernel, stride, dilation
        Taps, step between outputs, step between taps; in input positions.
    pad
        Padded positions before the input.
    """

    size: int
    out: int
    kernel: int
    stride: int
    pad: int
    dilation: int

    def reads(self, position: int, tap: int) -> bool:
        """Whether ``tap`` of the output at ``position`` lies inside the input."""
        return 0 <= position * self.stride + tap * self.dilation - self.pad < self.size

    def reads_all(self, start: int, width: int) -> bool:
        """Whether every tap of the outputs ``[start, start + width)`` lies inside the input."""
        return self.reads(start, 0) and self.reads(start + width - 1, self.kernel - 1)


@dataclass(frozen=True)
class TapRange:
    """Consecutive taps ``[begin, end)`` that the same ``positions`` of a tile (offsets from its start) read.

    Bounds that are found at run time are expressions.
    """

    begin: Index
    end: Index
    positions: tuple[int, ...]


@dataclass(frozen=True)
class TileRun:
    """``count`` tiles of ``width`` output positions, the first at ``start``, which all have the same ``taps``.

    Where ``taps`` is None, each tile finds its own at run time: see `tersor.targets.templates.windows.window_loops`.
    """

    start: int
    width: int
    count: int
    taps: tuple[TapRange, ...] | None

    @property
    def ranges(self) -> int:
        """Tap ranges that the code of a tile has: where it finds them, one for all positions and one for each."""
        return self.width + 1 if self.taps is None else len(self.taps)


def balanced_split(total: int, limit: int) -> list[int]:
    """Split ``total`` into the fewest parts of at most ``limit``, as equal as possible, larger ones first.

    >>> balanced_split(49, 14)
    [13, 12, 12, 12]
    """
    parts = -(-total // limit)
    small, larger = divmod(total, parts)
    return [small + 1] * larger + [small] * (parts - larger)


def tap_ranges(window: Window, start: int, width: int) -> tuple[TapRange, ...]:
    """The taps that the tile ``[start, start + width)`` reads, grouped by who reads them."""
    if window.reads_all(start, width):
        return (TapRange(0, window.kernel, tuple(range(width))),)
    ranges: list[TapRange] = []
    for tap in range(window.kernel):
        positions = tuple(offset for offset in range(width) if window.reads(start + offset, tap))
        if not positions:
            continue
        if ranges and ranges[-1].end == tap and ranges[-1].positions == positions:
            ranges[-1] = replace(ranges[-1], end=tap + 1)
        else:
            ranges.append(TapRange(tap, tap + 1, positions))
    return tuple(ranges)


def tile_runs(window: Window, limit: int) -> list[TileRun]:
    """Tile an axis with tiles of at most ``limit`` positions and group equal neighbours into runs."""
    return list(_tile_runs(window, limit))


@lru_cache(maxsize=1024)
def _tile_runs(window: Window, limit: int) -> tuple[TileRun, ...]:
    runs: list[TileRun] = []
    start = 0
    widths = balanced_split(window.out, limit)
    for width in widths:
        taps = tap_ranges(window, start, width)
        if runs and runs[-1].width == width and runs[-1].taps == taps:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(TileRun(start, width, 1, taps))
        start += width
        if sum(run.ranges for run in runs) > MOST_RANGES:
            return _dynamic_runs(widths)
    return tuple(runs)


def _dynamic_runs(widths: list[int]) -> tuple[TileRun, ...]:
    runs: list[TileRun] = []
    for width, equal in itertools.groupby(widths):
        start = runs[-1].start + runs[-1].width * runs[-1].count if runs else 0
        runs.append(TileRun(start, width, len(list(equal)), None))
    return tuple(runs)
