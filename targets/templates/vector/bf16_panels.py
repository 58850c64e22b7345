"""Operands of products in bfloat16 computed at run time, rearranged for `tersor.targets.templates.vector.bf16_tiles`.

The left operand becomes panels ``[32 of the depth][row][32]``: one row of a tile is 64 contiguous bytes, whatever the
strides of the matrix. The right operand becomes what `tersor.targets.templates.vector.amx.pack_pairs` makes of a
weight: ``[group of columns][32 of the depth][16 columns][pair of the depth][column][2]``.
"""

from __future__ import annotations

from tvm import tirx

from ..base import Buffer, Index
from .amx import TILE_COLUMNS, TILE_DEPTH, TILE_SIZE
from .bfloat16 import BITS
from .builder import bind, constant, load, loop, store, when
from .vectors import in_register, pieces, transpose

PAIRS = TILE_DEPTH // 2
_WORDS = f"uint32x{PAIRS}"
_TILE_ROW = f"{BITS}x{TILE_DEPTH}"


def depth_of(length: int) -> int:
    """Panels of 32 that sums of ``length`` products take."""
    return -(-length // TILE_DEPTH)


def gather_rows(
    source: Buffer, base: Index, row_stride: int, rows: Index, length: int, target: Buffer, plane: int
) -> None:
    """Copy ``rows`` rows of ``length`` contiguous numbers to panels; what fills the last panel up is zero.

    Parameters
    ----------
    plane
        Rows of one panel.
    """
    whole, rest = divmod(length, TILE_DEPTH)
    step = plane * TILE_DEPTH
    with loop(rows) as row:
        start = bind(base + row * row_stride)
        to = bind(row * TILE_DEPTH)
        if whole:
            with loop(whole) as depth:
                store(target, to + depth * step, load(source, start + depth * TILE_DEPTH, TILE_DEPTH), TILE_DEPTH)
        if rest:
            to = to + whole * step
            for offset, lanes in pieces(rest, TILE_DEPTH):
                store(target, to + offset, load(source, start + whole * TILE_DEPTH + offset, lanes), lanes)
            for offset, lanes in pieces(TILE_DEPTH - rest, TILE_DEPTH):
                store(target, to + rest + offset, constant(0, lanes, BITS), lanes)


def tile_at(group: Index, depth: Index, column: Index, depths: int, columns: int) -> Index:
    """Where a tile of a packed right operand starts, with ``columns`` tiles side by side."""
    return ((group * depths + depth) * columns + column) * TILE_SIZE


def transpose_panels(rows: Buffer, plane: int, length: int, columns: int, tiles: Buffer) -> None:
    """Pack a right operand whose columns lie in panels as rows do: squares of 16 columns by 16 pairs are transposed.

    Parameters
    ----------
    plane
        Rows of one panel, whole groups of ``columns`` times 16.
    """
    depths = depth_of(length)
    with loop(plane // TILE_COLUMNS) as block, loop(depths) as depth:
        source = bind((depth * plane + block * TILE_COLUMNS) * TILE_DEPTH)
        target = bind(tile_at(block // columns, depth, block % columns, depths, columns))
        loaded = [load(rows, source + column * TILE_DEPTH, TILE_DEPTH) for column in range(TILE_COLUMNS)]
        words = transpose([in_register(tirx.reinterpret(_WORDS, row)) for row in loaded])
        for pair, word in enumerate(words):
            store(tiles, target + pair * TILE_DEPTH, tirx.reinterpret(_TILE_ROW, word), TILE_DEPTH)


def pair_rows(source: Buffer, base: Index, row_stride: int, rows: int, width: int, columns: int, tiles: Buffer) -> None:
    """Pack a right operand with contiguous rows: two rows make one row of pairs; rows past the last one are zero."""
    depths = depth_of(rows)
    with loop(-(-width // TILE_COLUMNS)) as block:
        left_column = block * TILE_COLUMNS
        rest = width % TILE_COLUMNS

        def of_width(lanes: int) -> None:
            with loop(depths * PAIRS) as pair:
                row = bind(pair * 2)
                start = bind(base + row * row_stride + left_column)
                target = bind(
                    tile_at(block // columns, pair // PAIRS, block % columns, depths, columns)
                    + pair % PAIRS * TILE_DEPTH
                )
                when(
                    row + 1 < rows,
                    lambda: _store_pairs(source, start, start + row_stride, lanes, tiles, target),
                    lambda: when(
                        row < rows,
                        lambda: _store_pairs(source, start, None, lanes, tiles, target),
                        lambda: store(tiles, target, constant(0, TILE_DEPTH, BITS), TILE_DEPTH),
                    ),
                )

        is_last = left_column + TILE_COLUMNS > width
        when(is_last if rest else False, lambda: of_width(rest), lambda: of_width(TILE_COLUMNS))


def _store_pairs(source: Buffer, upper: Index, lower: Index | None, lanes: int, tiles: Buffer, target: Index) -> None:
    for start, count in pieces(lanes, TILE_COLUMNS):
        dtype = f"uint32x{count}" if count > 1 else "uint32"
        pair = tirx.Cast(dtype, load(source, upper + start, count))
        if lower is not None:
            pair = pair | (tirx.Cast(dtype, load(source, lower + start, count)) << constant(16, count, "uint32"))
        pair = tirx.reinterpret(f"{BITS}x{2 * count}", pair)
        store(tiles, target + 2 * start, pair, 2 * count)
