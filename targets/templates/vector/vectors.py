"""Vector helpers beyond plain loads and stores: lane slices, tails, horizontal reductions, strided loads, transposes.

Vectors are TIR expressions of any number of lanes, so the same code serves AVX-512, AVX2 and NEON. Everything here is
called while a PrimFunc is being written: :func:`in_register` emits a statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..base import Buffer, Expr, Index
from .builder import RegisterTile, broadcast, load, store


def lanes_of(value: Expr) -> int:
    """Number of lanes of an expression; 1 for a scalar."""
    return value.ty.dtype.lanes


def dtype_of(value: Expr, lanes: int | None = None) -> str:
    """The type of an expression, with another number of ``lanes`` if given; for example ``"float32x16"``."""
    dtype = value.ty.dtype
    lanes = dtype.lanes if lanes is None else lanes
    element = str(dtype).split("x")[0]
    return element if lanes == 1 else f"{element}x{lanes}"


def in_register(value: Expr) -> Expr:
    """Compute a value once and give it a name: a register that holds it.

    TIR expressions are trees: without this, each use of a shared Python expression is generated anew. A ``T.Bind``
    statement would do, but TVM's simplifier substitutes bound values back in, which takes seconds for a chain of them.
    """
    lanes = lanes_of(value)
    register = T.alloc_buffer((lanes,), dtype_of(value, 1), layout=None)
    store(register, 0, value, lanes)
    return load(register, 0, lanes)


def cast(vector: Expr, dtype: str) -> Expr:
    """Convert the element type."""
    if dtype_of(vector, 1) == dtype:
        return vector
    lanes = lanes_of(vector)
    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", vector)


def is_nan(vector: Expr) -> Expr:
    """Where floats are not numbers. By way of a byte, since TVM takes the negation of ``>=`` for ``<``."""
    lanes = lanes_of(vector)
    lowest = broadcast(tirx.const(float("-inf"), dtype_of(vector, 1)), lanes)
    is_number = in_register(cast(tirx.GE(vector, lowest), "uint8"))
    return tirx.EQ(is_number, broadcast(tirx.const(0, "uint8"), lanes))


def maximum(kept: Expr, value: Expr) -> Expr:
    """The larger of two numbers lane by lane, NaN where either is: a masked ``max`` and the comparison for its mask."""
    return _unless_nan(kept, tirx.Select(kept > value, kept, value))


def minimum(kept: Expr, value: Expr) -> Expr:
    """The smaller of two numbers lane by lane, NaN where either is."""
    return _unless_nan(kept, tirx.Select(kept < value, kept, value))


def _unless_nan(kept: Expr, chosen: Expr) -> Expr:
    """``chosen``, which is already NaN where the other operand is, but ``kept`` where that is NaN."""
    if not dtype_of(kept, 1).startswith("float"):
        return chosen
    lowest = broadcast(tirx.const(float("-inf"), dtype_of(kept, 1)), lanes_of(kept))
    return tirx.Select(kept >= lowest, chosen, kept)


def combine_all(tile: RegisterTile, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """All vectors of a tile combined, lane by lane, in the first of them; ``combine`` may use an operand repeatedly."""
    for index in range(1, tile.count):
        tile[0] = combine(tile[0], tile[index])
    return tile[0]


def lane_slice(value: Expr, start: int, lanes: int) -> Expr:
    """Lanes ``[start, start + lanes)`` of a vector."""
    if start == 0 and lanes == lanes_of(value):
        return value
    return tirx.Shuffle([value], [tirx.IntImm("int32", start + lane) for lane in range(lanes)])


def pieces(count: int, widest: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements into runs ``(start, lanes)`` of powers of two, none wider than ``widest``.

    Power-of-two vectors are what LLVM has instructions for; an odd vector such as 13 lanes becomes scalar code.
    ``widest`` itself need not be a power of two.
    """
    runs = []
    start = 0
    lanes = widest
    while start < count:
        while lanes > count - start:
            lanes = 1 << ((count - start).bit_length() - 1)
        runs.append((start, lanes))
        start += lanes
    return runs


def horizontal(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Reduce all lanes to one scalar with an associative ``combine``, by halving: ``log2(lanes)`` steps."""
    lanes = lanes_of(value)
    while lanes > 1:
        half = lanes // 2
        value = in_register(value)
        value = combine(lane_slice(value, 0, half), lane_slice(value, half, half))
        lanes = half
    return value


def load_strided(buffer: Buffer, offset: Index, stride: Index, lanes: int) -> Expr:
    """``lanes`` elements at ``offset``, ``offset + stride``, …: one load, one broadcast, or element loads."""
    if lanes == 1:
        return buffer[offset]
    if isinstance(stride, int) and stride == 0:
        return broadcast(buffer[offset], lanes)
    if isinstance(stride, int) and stride == 1:
        return load(buffer, offset, lanes)
    return buffer[T.Ramp(offset, stride, lanes)]


def transpose(rows: Sequence[Expr]) -> list[Expr]:
    """Transpose squares of ``n`` vectors by ``n`` lanes in registers; ``n`` is a power of two.

    Vectors of several times ``n`` lanes are squares side by side, each of which is transposed. ``log2(n)`` rounds of
    two-operand shuffles: round ``distance`` swaps the off-diagonal blocks of each square of ``2 * distance`` rows
    (Eklundh's method).
    """
    count = len(rows)
    if count & (count - 1) or any(lanes_of(row) % count for row in rows):
        raise ValueError(f"squares with a power of two of rows are needed, not {count} rows")
    values = list(rows)
    distance = count // 2
    while distance:
        values = _swap_blocks(values, distance)
        distance //= 2
    return values


def _swap_blocks(values: Sequence[Expr], distance: int) -> list[Expr]:
    count, lanes = len(values), lanes_of(values[0])
    keep_low = [lane if not lane & distance else lane - distance + lanes for lane in range(lanes)]
    keep_high = [lane + distance if not lane & distance else lane + lanes for lane in range(lanes)]
    result = list(values)
    for row in range(count):
        if row & distance:
            continue
        pair = [values[row], values[row + distance]]
        result[row] = in_register(shuffle(pair, keep_low))
        result[row + distance] = in_register(shuffle(pair, keep_high))
    return result


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """The given lanes of several vectors, counted through all of them."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", lane) for lane in lanes])
