"""Layer normalization along the last axis of a plain row-major tensor.

Each row is read three times while it is in L1: for its mean, for its variance around that mean (one pass over the
squares would cancel catastrophically where the mean is large), and for the result. A mean of 1e4 as a float32 number is
off by up to 5e-4, so the mean of what is left after subtracting it is subtracted too: the corrected two-pass algorithm
(T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", The American Statistician 37,
1983).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.accumulation import Accumulation
from ..vector.builder import Output, broadcast, constant, load, make_prim_func
from ..vector.vector_math import maximum, minimum
from ..vector.vectors import horizontal, in_register, lanes_of
from .row_vectors import RowKnobs, RowVectors, check_rows, flat_row, row_candidates, row_extents

_LARGEST = 3e38


@dataclass(frozen=True)
class LayerNormSpec:
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift`` over ``rows`` rows of ``cols`` elements.

    Attributes
    ----------
    rows, cols
        Number of rows, and elements that each is normalized over.
    epsilon
        Added to the (biased) variance.
    absent
        Zeros of each row that mean and variance count besides, but that are not there.
    has_scale, has_shift
        Whether there are ``cols`` learned factors and summands.
    shape
        Optional logical shape, its last extent being ``cols``: the epilogue then sees its coordinates instead of
        ``(row, column)``.
    dtype
        Element type of the operand; factors and summands are float32.
    """

    rows: int
    cols: int
    epsilon: float = 1e-5
    has_scale: bool = True
    has_shift: bool = True
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    absent: int = 0

    def __post_init__(self) -> None:
        check_rows(self.rows, self.cols, self.shape, self.dtype)
        if self.epsilon < 0:
            raise ValueError(f"epsilon must not be negative, not {self.epsilon}")
        if self.absent < 0:
            raise ValueError(f"absent must not be negative, not {self.absent}")

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return self.rows * self.cols

    @property
    def macs(self) -> int:
        """Multiply-adds: about four for each element."""
        return 4 * self.size


def candidates(spec: LayerNormSpec, target: Cpu) -> list[RowKnobs]:
    """Feasible knobs, best analytic guess first."""
    return row_candidates(spec.cols, target.lanes(), 4, 8, 2, 1)


def build(spec: LayerNormSpec, target: Cpu, knobs: RowKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(x, [scale], [shift], *epilogue buffers, out)``."""
    row = RowVectors(spec.cols, target.lanes(), knobs.unroll)
    inputs = [BufferSpec("x", spec.size, spec.dtype)]
    inputs += [BufferSpec("scale", spec.cols)] * spec.has_scale
    inputs += [BufferSpec("shift", spec.cols)] * spec.has_shift
    output = BufferSpec("out", spec.size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        x, *affine = buffers
        scale = affine[0] if spec.has_scale else None
        shift = affine[-1] if spec.has_shift else None
        with shared_loop(row_extents(spec), macs=spec.macs, bytes_moved=8 * spec.size) as indices:
            first = flat_row(indices, row_extents(spec)) * spec.cols

            def read(offset: Index, lanes: int) -> Expr:
                return load(x, first + offset, lanes)

            def write(offset: Index, value: Expr) -> None:
                lanes = lanes_of(value)
                if scale is not None:
                    value = value * load(scale, offset, lanes)
                if shift is not None:
                    value = value + load(shift, offset, lanes)
                at = VectorAt((*indices, offset), len(indices), lanes, first + offset)
                out.store(value, at)

            _write_row(row, spec, read, write)

    return make_prim_func("layer_norm", inputs, output, body, epilogue)


def _write_row(
    row: RowVectors, spec: LayerNormSpec, read: Callable[[Index, int], Expr], write: Callable[[Index, Expr], None]
) -> None:
    lanes = row.lanes
    rest = row.load_rest(read, 0.0) if row.rest else None
    count = row.length + spec.absent
    share = constant(1.0 / count, lanes)  # taken of each term, so that no sum of large numbers overflows
    center = in_register(*_sums(row, rest, read, lambda value: value * share))
    mean = broadcast(center, lanes)

    def distance(value: Expr) -> Expr:
        return value - mean

    def squared(value: Expr) -> Expr:
        return distance(value) * distance(value) * share

    remainder, squares = _sums(row, rest, read, lambda value: distance(value) * share, squared)
    if spec.absent:  # zeros, each of which is the mean away from it
        remainder = remainder - center * constant(spec.absent / count, 1)
        squares = squares + center * center * constant(spec.absent / count, 1)
    remainder = in_register(remainder)
    excess = minimum(in_register(remainder * remainder), _LARGEST)  # finite, so that an infinite variance stays one
    variance = maximum(in_register(squares - excess), 0.0)
    factor = broadcast(in_register(constant(1.0, 1) / T.sqrt(variance + constant(spec.epsilon, 1))), lanes)
    remainder = broadcast(remainder, lanes)

    def normalised(value: Expr) -> Expr:
        return (in_register(distance(value)) - remainder) * factor

    row.for_each_vector(lambda offset, _: write(offset, normalised(read(offset, lanes))))
    if rest is not None:
        row.store_rest(normalised(rest), write)


def _sums(
    row: RowVectors, rest: Expr | None, read: Callable[[Index, int], Expr], *terms: Callable[[Expr], Expr]
) -> list[Expr]:
    """Sums of ``term(x)`` over a row for each of ``terms``, as scalars."""
    sums = Accumulation()
    tile = sums.tile(row.slots * len(terms), row.lanes)

    def of_vector(offset: Index) -> list[Expr]:
        value = in_register(read(offset, row.lanes))
        return [term(value) for term in terms]

    row.accumulate(sums, tile, of_vector)
    totals = []
    for index, term in enumerate(terms):
        slots = range(index * row.slots, (index + 1) * row.slots)
        if rest is not None:
            sums.add(tile, slots[0], row.fresh(term(rest), 0.0))
        totals.append(horizontal(functools.reduce(operator.add, (tile[slot] for slot in slots)), operator.add))
    return totals
