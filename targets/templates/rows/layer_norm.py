"""Layer normalization along the last axis of a plain row-major tensor.

Each row is read three times while it is in L1: for its mean, for its variance around that mean (one pass over the
squares would cancel catastrophically where the mean is large), and for the result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Target
from ..base import NO_EPILOGUE, BufferSpec, Epilogue, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import RegisterTile, broadcast, constant, load, make_prim_func, store_result
from ..vector.vectors import combine_all, horizontal, in_register, lanes_of
from .row_vectors import RowVectors, check_rows, flat_row, row_extents

Buffer = Any
Index = Any
Expr = Any


@dataclass(frozen=True)
class LayerNormSpec:
    """``(x - mean) / sqrt(variance + epsilon) * scale + shift`` over ``rows`` rows of ``cols`` elements.

    Attributes
    ----------
    rows, cols
        Number of rows, and elements that each is normalized over.
    epsilon
        Added to the (biased) variance.
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

    def __post_init__(self) -> None:
        check_rows(self.rows, self.cols, self.shape, self.dtype)
        if self.epsilon < 0:
            raise ValueError(f"epsilon must not be negative, not {self.epsilon}")

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return self.rows * self.cols

    @property
    def macs(self) -> int:
        """Multiply-adds: about four for each element."""
        return 4 * self.size


@dataclass(frozen=True)
class LayerNormKnobs:
    """``unroll``: vectors handled in one step of the loops along a row."""

    unroll: int = 4


def candidates(spec: LayerNormSpec, target: Target) -> list[LayerNormKnobs]:
    """Feasible knobs, best analytic guess first."""
    vectors = max(1, spec.cols // target.lanes())
    return [LayerNormKnobs(unroll) for unroll in (4, 8, 2, 1) if unroll <= vectors or unroll == 1]


def build(
    spec: LayerNormSpec,
    target: Target,
    knobs: LayerNormKnobs,
    epilogue: Epilogue = NO_EPILOGUE,
    name: str = "layer_norm",
) -> tirx.PrimFunc:
    """Write the PrimFunc ``name(x, [scale], [shift], *epilogue buffers, out)``."""
    row = RowVectors(spec.cols, target.lanes(), knobs.unroll)
    inputs = [BufferSpec("x", spec.size, spec.dtype)]
    inputs += [BufferSpec("scale", spec.cols)] * spec.has_scale
    inputs += [BufferSpec("shift", spec.cols)] * spec.has_shift
    output = BufferSpec("out", spec.size, epilogue.dtype)

    def body(buffers: Sequence[Buffer], extra: Sequence[Buffer], out: Buffer) -> None:
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
                store_result(out, value, at, epilogue, extra)

            _write_row(row, spec.epsilon, read, write)

    return make_prim_func(name, inputs, output, body, epilogue)


def _write_row(
    row: RowVectors, epsilon: float, read: Callable[[Index, int], Expr], write: Callable[[Index, Expr], None]
) -> None:
    lanes = row.lanes
    rest = row.load_rest(read, 0.0) if row.rest else None
    share = constant(1.0 / row.length, 1)
    mean = in_register(_sum(row, rest, read, lambda value: value) * share)
    mean = broadcast(mean, lanes)

    def squared_distance(value: Expr) -> Expr:
        distance = in_register(value - mean)
        return distance * distance

    variance = _sum(row, rest, read, squared_distance) * share
    factor = broadcast(in_register(constant(1.0, 1) / T.sqrt(variance + constant(epsilon, 1))), lanes)
    row.for_each_vector(lambda offset, _: write(offset, (read(offset, lanes) - mean) * factor))
    if rest is not None:
        row.store_rest((rest - mean) * factor, write)


def _sum(row: RowVectors, rest: Expr | None, read: Callable[[Index, int], Expr], term: Callable[[Expr], Expr]) -> Expr:
    """Sum of ``term(x)`` over a row, as a scalar."""
    sums = RegisterTile(min(row.unroll, max(1, row.whole)), row.lanes)
    sums.fill(0.0)

    def add(offset: Index, slot: int) -> None:
        sums[slot] = sums[slot] + term(read(offset, row.lanes))

    row.for_each_vector(add)
    if rest is not None:
        sums[0] = sums[0] + row.fresh(term(rest), 0.0)
    return horizontal(combine_all(sums, operator.add), operator.add)
