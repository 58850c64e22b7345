"""When and how a kernel's outer loop is shared by threads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

from tvm.tirx.script.builder import ir as T

from .base import Index
from .vector.builder import loop, parallel, split_index, when

# Waking the threads costs about 1.5 microseconds. A core does some 100,000 multiply-adds, or moves some 30 KB, in one
# microsecond. Below these amounts one thread is done before two are.
PARALLEL_MIN_MACS = 400_000
PARALLEL_MIN_BYTES = 128 * 1024


@contextlib.contextmanager
def shared_loop(extents: Sequence[int], *, macs: int = 0, bytes_moved: int = 0) -> Iterator[tuple[Index, ...]]:
    """One loop over the product of ``extents``, the last running fastest; parallel when there is enough work.

    Parameters
    ----------
    extents
        Number of pieces along each dimension.
    macs, bytes_moved
        Multiply-adds and bytes of the whole loop.
    """
    if math.prod(extents) == 1:
        yield (0,) * len(extents)
        return
    if macs >= PARALLEL_MIN_MACS or bytes_moved >= PARALLEL_MIN_BYTES:
        with parallel(*extents) as indices:
            yield indices
        return
    with T.serial(0, math.prod(extents)) as flat:
        yield split_index(flat, extents)


def imbalance(pieces: int, cores: int) -> float:
    """Time of the busiest core relative to an even split: 1 is perfect."""
    return -(-pieces // cores) * cores / pieces


def balance(fixed: int, divisible: Sequence[int], cores: int, tolerance: float = 1.1) -> tuple[int, ...]:
    """Into how many pieces to cut each dimension so that ``cores`` are evenly loaded, cutting as little as possible.

    Parameters
    ----------
    fixed
        Number of pieces there are anyhow (the batch).
    divisible
        Units that each further dimension can be cut into, cheapest to cut first.
    tolerance
        Accepted :func:`imbalance`.
    """
    chunks = [1] * len(divisible)
    for position, units in enumerate(divisible):
        done = fixed * math.prod(chunks)
        options = [count for count in range(1, min(units, 4 * cores) + 1)]
        costs = {count: imbalance(done * count, cores) * chunk_imbalance(units, count) for count in options}
        good = [count for count in options if costs[count] <= tolerance]
        if good:
            chunks[position] = good[0]
            return tuple(chunks)
        chunks[position] = min(options, key=lambda count: costs[count])
    return tuple(chunks)


def chunk_imbalance(units: int, chunks: int) -> float:
    """Size of the largest of ``chunks`` contiguous runs of ``units``, relative to the mean."""
    return -(-units // chunks) * chunks / units


@contextlib.contextmanager
def chunk_loop(chunk: Index, chunks: int, units: int) -> Iterator[Index]:
    """Loop over run ``chunk`` when ``units`` are cut into ``chunks`` contiguous runs of nearly the same length."""
    if chunks == units:
        yield chunk
        return
    if chunks == 1:
        with loop(units) as unit:
            yield unit
        return
    with loop((chunk + 1) * units // chunks, chunk * units // chunks) as unit:
        yield unit


def even_tile(tile: Index, tiles: int, rows: int, write: Callable[[int, Index], None]) -> None:
    """``write(height, first row)`` for one of the tiles that rows are cut into; the first have one more than others."""
    height, taller = divmod(rows, tiles)
    when(
        tile < taller if taller else False,
        lambda: write(height + 1, tile * (height + 1)),
        lambda: write(height, tile * height + taller),
    )
