"""The loop over tiles of sums in which the epilogue of one tile runs while the matrix unit works on the next one.

    for tile:
        for step of tile:
            sums += left @ right
            some positions of the tile before: output = epilogue(its sums)
    the last tile: output = epilogue(its sums)

The matrix unit takes its 16 cycles for a product without help, and vector instructions are executed meanwhile if they
stand next to it: a processor looks only some hundred instructions ahead. Sums go to two places in memory alternately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Index
from ..parallelism import chunk_loop
from .amx import scratch, sums_buffer
from .bf16_tiles import SumsShape
from .builder import bind, loop, when

MOST_PIECES = 5  # of an epilogue that are written out, which costs compile time


@dataclass(frozen=True)
class Tile:
    """A tile of sums.

    Attributes
    ----------
    group, position
        Group of outputs, and first position; past the last position where there is no such tile.
    sums, place
        Where its sums lie in memory: a row of outputs for each position.
    """

    group: Index
    position: Index
    sums: Buffer
    place: Index


@dataclass(frozen=True)
class Pending:
    """The epilogue of the tile before, cut into as many pieces as the current tile has steps.

    Attributes
    ----------
    tile
        The tile before.
    positions
        Its positions.
    finish
        ``finish(tile, begin, count)`` applies the epilogue to some positions, and ignores those past the last one.
    """

    tile: Tile
    positions: int
    finish: Callable[[Tile, Index, int], None]

    def after_step(self, outer: Index, inner: int, inner_steps: int, outer_steps: int) -> None:
        """Do the share of step ``inner`` of so many, in round ``outer`` of so many, if it is given one."""
        interval = -(-inner_steps // MOST_PIECES)
        if inner % interval:
            return
        pieces = -(-inner_steps // interval)
        share = -(-self.positions // (pieces * outer_steps))
        if inner // interval * share >= self.positions:
            return
        begin = bind((outer * pieces + inner // interval) * share)
        exists = begin < self.positions if (pieces * outer_steps - 1) * share >= self.positions else True
        when(exists, lambda: self.finish(self.tile, begin, share))


class TileWriter:
    """Writes the tiles of sums of a unit of work, one after the other or, where they are pipelined, as above.

    Attributes
    ----------
    shape
        What the tiles are.
    table
        What the sums of a group of outputs start from; None for zero.
    """

    is_pipelined = False
    shape: SumsShape
    table: Buffer | None

    def allocate_sums(self) -> Buffer | None:
        """Memory for the sums of a tile; those of pipelined tiles have a place in their loop."""
        return None if self.is_pipelined else sums_buffer(self.shape)

    def write_tiles(
        self,
        unit: tuple[Index, int, int],
        tiles: Index,
        end: Index,
        sums: Buffer | None,
        multiply: Callable[..., None],
        finish: Callable[..., None],
    ) -> None:
        """Loop over all tiles; see `for_each_tile`. Without a pipeline nothing is pending, and tiles have no pieces."""
        if self.is_pipelined:
            for_each_tile(unit, tiles, self.shape, end, multiply, finish)
            return
        with chunk_loop(*unit) as group, loop(tiles) as index:
            tile = Tile(group, bind(index * self.shape.positions), sums, 0)
            multiply(tile, None)
            finish(tile)

    def start(self, tiles: Any, group: Index) -> None:
        """Set the sums of one group of outputs to what they start from."""
        if self.table is None:
            tiles.clear()
        else:
            tiles.start_from(self.table, group * self.shape.outputs)


def for_each_tile(
    unit: tuple[Index, int, int],
    tiles: Index,
    shape: SumsShape,
    end: Index,
    multiply: Callable[[Tile, Pending], None],
    finish: Callable[[Tile, Index, int], None],
) -> None:
    """Loop over all tiles of some groups of outputs.

    Parameters
    ----------
    unit
        Which piece of the groups of outputs, of how many, and the number of groups.
    tiles
        Tiles of positions in each group.
    shape
        What the tiles are.
    end
        One past the last position.
    multiply
        ``multiply(tile, pending)`` writes the sums of one tile, and calls ``pending.after_step`` behind each step.
    finish
        See `Pending`.
    """
    piece, pieces, groups = unit
    tiles = bind(tiles)
    first_group, end_group = bind(piece * groups // pieces), bind((piece + 1) * groups // pieces)
    size = shape.positions * shape.outputs
    sums = scratch(2 * size, shape.sum_type)
    total = bind((end_group - first_group) * tiles)

    def finished(index: Index) -> Tile:
        tile = tirx.max(index, 0)
        position = tirx.Select(index < 0, end, tile % tiles * shape.positions)
        return Tile(bind(first_group + tile // tiles), bind(position), sums, bind((index + 2) % 2 * size))

    with T.serial(0, total) as index:
        pending = Pending(finished(index - 1), shape.positions, finish)
        group, position = bind(first_group + index // tiles), bind(index % tiles * shape.positions)
        multiply(Tile(group, position, sums, index % 2 * size), pending)
    finish(finished(total - 1), 0, shape.positions)
