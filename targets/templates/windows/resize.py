"""Interpolation between the elements of images, in channel blocks or row-major.

For each row of the result, the rows of the input that it is made of are mixed into one, which stays in L1; then its
elements are mixed. Which rows and elements these are, and their weights, is looked up, so the code is the same for all
ways to place them. In channel blocks a vector holds channels of one position; row-major it holds neighbouring
positions, whose elements are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..vector.builder import Output, RegisterTile, bind, broadcast, load, loop, make_prim_func, store
from ..vector.vectors import cast
from .window_loops import row_pieces

UNROLLED_TAPS = 8  # of an axis; more are a loop


@dataclass(frozen=True)
class ResizeSpec:
    """``n`` images of ``c`` channels, ``h`` by ``w`` elements -> ``out_h`` by ``out_w`` elements.

    Attributes
    ----------
    rows, columns
        Elements that a new one is made of along each axis.
    block
        Channels of a block, 0 where the images are row-major.
    dtype
        Element type of the images. What is mixed is float32, or float64 of such; 8-bit integers have weights of which
        float32 sums are exact.
    """

    n: int
    c: int
    h: int
    w: int
    out_h: int
    out_w: int
    rows: int
    columns: int
    block: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.n, self.c, self.h, self.w, self.out_h, self.out_w, self.rows, self.columns) < 1:
            raise ValueError(f"sizes must be positive: {self}")

    @property
    def planes(self) -> int:
        """Images times their channels, or blocks of these."""
        return self.n * (-(-self.c // self.block) if self.block else self.c)

    @property
    def width(self) -> int:
        """Stored numbers of one position of a plane."""
        return self.block or 1

    @property
    def number(self) -> str:
        """The type that is computed in."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def taps(self) -> int:
        """Numbers in a table: for each new row its taps, then for each new column its taps."""
        return self.out_h * self.rows + self.out_w * self.columns


def build(spec: ResizeSpec, target: Cpu, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(data, places, weights, *epilogue.buffers, output)``; tables are as `ResizeSpec.taps`."""
    size = spec.planes * spec.width
    inputs = (
        BufferSpec("data", size * spec.h * spec.w, spec.dtype),
        BufferSpec("places", spec.taps, "int32"),
        BufferSpec("weights", spec.taps, spec.number),
    )
    output = BufferSpec("output", size * spec.out_h * spec.out_w, epilogue.dtype)
    pieces = row_pieces(spec.planes, spec.out_h, target)
    numbers = spec.rows * spec.w + (spec.columns + 1) * spec.out_w  # that a row of the result moves, nearly enough

    def body(buffers: Sequence[Buffer], out: Output) -> None:
        writer = _RowWriter(spec, target.lanes() if spec.number == "float32" else target.lanes() // 2, buffers, out)
        moved = 4 * size * spec.out_h * numbers
        with shared_loop((spec.planes, pieces), bytes_moved=moved) as (plane, piece):
            begin = 0 if pieces == 1 else bind(piece * spec.out_h // pieces)
            end = spec.out_h if pieces == 1 else bind((piece + 1) * spec.out_h // pieces)
            mixed = T.alloc_buffer((spec.w * spec.width,), spec.number, align=64)
            with loop(end, begin) as y:
                writer.mix_rows(plane, y, mixed)
                writer.mix_columns(plane, y, mixed)

    return make_prim_func("resize", inputs, output, body, epilogue)


class _RowWriter:
    """One row of a plane, in vectors of ``lanes`` numbers where the images are row-major."""

    def __init__(self, spec: ResizeSpec, lanes: int, buffers: Sequence[Buffer], out: Output) -> None:
        self.spec = spec
        self.lanes = lanes
        self.data, self.places, self.weights = buffers
        self.out = out

    def mix_rows(self, plane: Index, y: Index, mixed: Buffer) -> None:
        """Write the row of the result at the columns of the input."""
        spec, length = self.spec, self.spec.w * self.spec.width
        taps = range(spec.rows)
        few = spec.rows <= UNROLLED_TAPS
        starts = [self._row(plane, y, tap) for tap in taps] if few else []
        weights = [bind(self.weights[y * spec.rows + tap]) for tap in taps] if few else []

        def mix(first: Index, lanes: int) -> None:
            def term(tap: Index) -> Expr:
                start = starts[tap] if few else self._row(plane, y, tap)
                weight = weights[tap] if few else self.weights[y * spec.rows + tap]
                return cast(load(self.data, start + first, lanes), spec.number) * broadcast(weight, lanes)

            store(mixed, first, self._sum(spec.rows, term, lanes), lanes)

        _in_vectors(length, self.lanes, mix)

    def _row(self, plane: Index, y: Index, tap: Index) -> Index:
        """Where the row of the input begins."""
        spec = self.spec
        return bind((plane * spec.h + self.places[y * spec.rows + tap]) * (spec.w * spec.width))

    def mix_columns(self, plane: Index, y: Index, mixed: Buffer) -> None:
        """Write row ``y`` of the result."""
        spec, first = self.spec, self.spec.out_h * self.spec.rows
        blocks = spec.planes // spec.n
        image, channel = plane // blocks, plane % blocks * spec.width
        row = bind((plane * spec.out_h + y) * spec.out_w)

        def in_blocks(x: Index) -> None:
            def term(tap: Index) -> Expr:
                entry = first + x * spec.columns + tap
                weight = broadcast(self.weights[entry], spec.block)
                return load(mixed, self.places[entry] * spec.block, spec.block) * weight

            at = VectorAt((image, channel, y, x), 1, spec.block, (row + x) * spec.block)
            self.out.store(self._sum(spec.columns, term, spec.block), at)

        def row_major(x: Index, lanes: int) -> None:
            def term(tap: Index) -> Expr:
                entry = first + tap * spec.out_w + x
                return mixed[load(self.places, entry, lanes)] * load(self.weights, entry, lanes)

            at = VectorAt((image, channel, y, x), 3, lanes, row + x)
            self.out.store(self._sum(spec.columns, term, lanes), at)

        if spec.block:
            with loop(spec.out_w) as x:
                in_blocks(x)
        else:
            _in_vectors(spec.out_w, self.lanes, row_major)

    def _sum(self, taps: int, term: Callable[[Index], Expr], lanes: int) -> Expr:
        if taps <= UNROLLED_TAPS:
            return reduce(lambda one, other: one + other, map(term, range(taps)))
        total = RegisterTile(1, lanes, self.spec.number)
        total.fill(0.0)
        with loop(taps) as tap:
            total[0] = total[0] + term(tap)
        return total[0]


def _in_vectors(length: int, lanes: int, action: Callable[[Index, int], None]) -> None:
    """``action(first, lanes)`` for so many numbers; those of the last vector that others hold are computed again."""
    if length < lanes:
        with loop(length) as index:
            action(index, 1)
        return
    with loop(length // lanes) as index:
        action(index * lanes, lanes)
    if length % lanes:
        action(length - lanes, lanes)
