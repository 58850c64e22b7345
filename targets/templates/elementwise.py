"""A map over an output tensor: whatever computes each vector of results from where it lies.

Pointwise operators, broadcasts, permutes, slices, concatenations, pads and gathers differ only in how an output vector
finds its operands, so the caller supplies that: ``compute(at, buffers)`` gives the expression for one vector. Three
ways to walk:

- ``flat``: the output is one contiguous run; ``at.coords`` is ``(element offset,)``.
- ``coordinates``: ``at.coords`` are logical coordinates; the lanes run along the last dimension.
- ``blocked``: an output in the layout NCHW{c}c; the lanes are the ``c`` channels of a block. Lanes past the last
  channel are computed and stored too, so ``compute`` must give something finite there.

A run that is no multiple of the vector width ends with one more vector that overlaps its predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from ..machines.target import Cpu
from .base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from .parallelism import imbalance, shared_loop
from .vector.builder import Output, loop, make_prim_func
from .vector.vectors import pieces

Compute = Callable[[VectorAt, Sequence[Buffer]], Expr]

FLAT = "flat"
COORDINATES = "coordinates"
BLOCKED = "blocked"


@dataclass(frozen=True)
class ElementwiseSpec:
    """The output of a map, and what it reads.

    Attributes
    ----------
    shape
        Logical shape of the output. For ``blocked``: ``(n, channels, *spatial)``.
    inputs
        The operands, in argument order.
    walk
        ``"flat"``, ``"coordinates"`` or ``"blocked"``, see above.
    block
        Channels of one block; for ``"blocked"`` only.
    dtype
        Element type of the result. The number of lanes follows from it.
    operations
        Rough number of instructions for one vector, to judge whether several threads pay.
    """

    shape: tuple[int, ...]
    inputs: tuple[BufferSpec, ...]
    walk: str = FLAT
    block: int = 0
    dtype: str = "float32"
    operations: int = 4

    def __post_init__(self) -> None:
        if self.walk not in (FLAT, COORDINATES, BLOCKED):
            raise ValueError(f"walk must be {FLAT!r}, {COORDINATES!r} or {BLOCKED!r}, not {self.walk!r}")
        if any(extent < 1 for extent in self.shape):
            raise ValueError(f"every extent must be positive: {self.shape}")
        if (self.walk == BLOCKED) != (self.block > 0):
            raise ValueError("a block size goes with the blocked walk, and only with that")
        if self.walk == BLOCKED and len(self.shape) < 2:
            raise ValueError(f"a blocked output has at least the dimensions (n, channels), not {self.shape}")

    @property
    def size(self) -> int:
        """Physical elements of the output, padding channels included."""
        if self.walk != BLOCKED:
            return math.prod(self.shape)
        batch, channels, *spatial = self.shape
        return batch * -(-channels // self.block) * math.prod(spatial) * self.block

    @property
    def macs(self) -> int:
        """Arithmetic, in units that compare with a matrix product's multiply-adds."""
        return self.size * self.operations

    @property
    def bytes_moved(self) -> int:
        """Bytes written, and as many read for each operand; an estimate."""
        return 4 * self.size * (1 + len(self.inputs))


@dataclass(frozen=True)
class ElementwiseKnobs:
    """``unroll``: vectors written out in the body of the innermost loop."""

    unroll: int = 4


def candidates(spec: ElementwiseSpec, target: Cpu) -> list[ElementwiseKnobs]:
    """Feasible knobs, best analytic guess first."""
    run = _runs(spec)[-1] // (1 if spec.walk == BLOCKED else _lanes(spec, target))
    return [ElementwiseKnobs(unroll) for unroll in (4, 2, 8, 1) if unroll <= max(1, run)]


def build(
    spec: ElementwiseSpec,
    target: Cpu,
    knobs: ElementwiseKnobs,
    compute: Compute,
    epilogue: Epilogue = NO_EPILOGUE,
) -> tirx.PrimFunc:
    """Write the PrimFunc ``(*inputs, *epilogue buffers, out)``."""
    output = BufferSpec("out", spec.size, epilogue.dtype if epilogue is not NO_EPILOGUE else spec.dtype)

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        def emit(coords: tuple[Index, ...], axis: int, lanes: int, flat: Index) -> None:
            at = VectorAt(coords, axis, lanes, flat)
            out.store(compute(at, buffers), at)

        write = _write_blocked if spec.walk == BLOCKED else _write_rows
        write(spec, _lanes(spec, target), knobs.unroll, target.cores, emit)

    return make_prim_func("elementwise", spec.inputs, output, body, epilogue)


Emit = Callable[[tuple[Index, ...], int, int, Index], None]


def _lanes(spec: ElementwiseSpec, target: Cpu) -> int:
    return target.lanes(tirx.const(0, spec.dtype).ty.dtype.itemsize)


def _runs(spec: ElementwiseSpec) -> tuple[int, ...]:
    """Extents of the loops, the last one being a contiguous run."""
    if spec.walk == FLAT:
        return (math.prod(spec.shape),)
    if spec.walk == COORDINATES:
        return spec.shape or (1,)
    batch, channels, *spatial = spec.shape
    return (batch, -(-channels // spec.block), *(spatial or (1,)))


def _write_rows(spec: ElementwiseSpec, lanes: int, unroll: int, cores: int, emit: Emit) -> None:
    """Rows along the last dimension, each in steps of ``unroll`` vectors and a rest."""
    *outer, length = _runs(spec)
    unroll = min(unroll, max(1, length // lanes))
    steps, rest = divmod(length, lanes * unroll)

    def write_step(indices: Sequence[Index]) -> None:
        *row, step = indices
        write_vectors(row, step * (unroll * lanes), unroll)

    def write_vectors(row: Sequence[Index], start: Index, count: int) -> None:
        for vector in range(count):
            write_vector(row, start + vector * lanes, lanes)

    def write_vector(row: Sequence[Index], offset: Index, width: int) -> None:
        emit((*row, offset), len(row), width, _flatten(row, outer) * length + offset)

    def write_rest(row: Sequence[Index]) -> None:
        write_vectors(row, length - rest, rest // lanes)
        if rest % lanes and length >= lanes:
            write_vector(row, length - lanes, lanes)
        elif rest % lanes:
            for offset, width in pieces(length, lanes):
                write_vector(row, offset, width)

    def write_row(row: Sequence[Index]) -> None:
        if steps:
            _nest_serial((steps,), row, write_step)
        write_rest(row)

    if rest and math.prod(outer) > 1:
        _nest(outer, spec, cores, write_row)
        return
    # A row without a rest, or the only one: its steps are shared by the threads as well.
    if steps:
        _nest((*outer, steps), spec, cores, write_step)
    if rest:
        write_rest((0,) * len(outer))


def _write_blocked(spec: ElementwiseSpec, lanes: int, unroll: int, cores: int, emit: Emit) -> None:
    """Blocks of channels outside, positions inside; each vector holds the channels of one block at one position."""
    extents = _runs(spec)
    length = extents[-1]
    unroll = max(count for count in range(1, min(unroll, length) + 1) if length % count == 0)

    def write(indices: Sequence[Index]) -> None:
        batch, block, *position, step = indices
        for inner in range(unroll):
            last = step * unroll + inner
            flat = _flatten((batch, block, *position, last), extents) * spec.block
            spatial = (*position, last)[: len(spec.shape) - 2]
            emit((batch, block * spec.block, *spatial), 1, spec.block, flat)

    _nest((*extents[:-1], length // unroll), spec, cores, write)


def _nest(extents: Sequence[int], spec: ElementwiseSpec, cores: int, write: Callable[[Sequence[Index]], None]) -> None:
    """Loops over ``extents``: as many outer ones as balance the load are shared by threads, the others are nested."""
    shared = 0
    while shared < len(extents):
        shared += 1
        if imbalance(math.prod(extents[:shared]), cores) <= 1.05:
            break
    with shared_loop(extents[:shared], macs=spec.macs, bytes_moved=spec.bytes_moved) as indices:
        _nest_serial(extents[shared:], indices, write)


def _nest_serial(extents: Sequence[int], indices: Sequence[Index], write: Callable[[Sequence[Index]], None]) -> None:
    if not extents:
        write(indices)
        return
    with loop(extents[0]) as index:
        _nest_serial(extents[1:], (*indices, index), write)


def _flatten(indices: Sequence[Index], extents: Sequence[int]) -> Index:
    flat: Index = 0
    for index, extent in zip(indices, extents, strict=True):
        flat = flat * extent + index
    return flat
