"""Max and average pooling over windows, and reductions of whole planes, in blocked layout.

Of 8-bit integers the maximum is one; averages are float32: the int32 sum times the reciprocal of the count, each
rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..parallelism import shared_loop
from ..rows.reduce import COMBINE, NEUTRAL
from ..vector.accumulation import Accumulation
from ..vector.builder import Output, RegisterTile, bind, broadcast, constant, load, loop, make_prim_func
from ..vector.integers import accumulator, add, mean, widened
from ..vector.operand_types import INTEGER_RANGES, check_operands, is_integer
from ..vector.vectors import combine_all, maximum
from .spatial import TileRun, Window
from .window_loops import for_each_tap, for_each_tile, piece_counts, tap_bounds, tile_widths

GLOBAL_ACCUMULATORS = 8  # independent sums that hide the latency of an addition


@dataclass(frozen=True)
class PoolSpec:
    """Pooling with the meaning of ``torch.nn.functional.max_pool2d`` and ``avg_pool2d``.

    Attributes
    ----------
    mode
        ``"max"`` or ``"avg"``.
    padding
        (top, left, bottom, right); max pooling ignores it, average pooling counts it as zeros
        if ``count_include_pad``.
    ceil_mode
        Whether a last window that starts inside the (top and left padded) input but ends behind it counts.
    """

    n: int
    c: int
    h: int
    w: int
    mode: Literal["max", "avg"] = "max"
    kernel: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.n, self.c, self.h, self.w, *self.kernel, *self.stride, *self.dilation) < 1:
            raise ValueError(f"sizes must be positive: {self}")
        if min(self.padding) < 0:
            raise ValueError(f"padding must not be negative: {self}")
        check_operands(self.dtype)
        if self.mode not in ("max", "avg"):
            raise ValueError(f"unknown pooling mode {self.mode!r}; use 'max' or 'avg'")
        if self.mode == "avg" and self.dilation != (1, 1):
            raise ValueError("average pooling has no dilation")
        if self.out_h < 1 or self.out_w < 1:
            raise ValueError(f"the window is larger than the padded input: {self}")

    def _out(self, axis: int) -> int:
        size, before, after = (self.h, self.w)[axis], self.padding[axis], self.padding[axis + 2]
        stride = self.stride[axis]
        room = size + before + after - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        if not self.ceil_mode:
            return room // stride + 1
        out = -(-room // stride) + 1
        return out - 1 if (out - 1) * stride >= size + before else out

    @property
    def out_h(self) -> int:
        """Output height."""
        return self._out(0)

    @property
    def out_w(self) -> int:
        """Output width."""
        return self._out(1)

    def windows(self) -> tuple[Window, Window]:
        """The row and column windows."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        return (
            Window(self.h, self.out_h, kh, sh, self.padding[0], dh),
            Window(self.w, self.out_w, kw, sw, self.padding[1], dw),
        )


@dataclass(frozen=True)
class PoolKnobs:
    """``columns`` outputs in the register tile, and ``pieces`` of each plane's rows for threads."""

    columns: int
    pieces: int


def candidates(spec: PoolSpec, target: Cpu) -> list[PoolKnobs]:
    """Feasible knobs, the best analytic guess first."""
    rows, columns = spec.windows()
    shares = piece_counts(spec.n * -(-spec.c // target.lanes()), rows.out, target)
    return [PoolKnobs(width, pieces) for pieces in shares for width in tile_widths(columns, target, 0)]


def build(spec: PoolSpec, target: Cpu, knobs: PoolKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the pooling as a PrimFunc ``(input, *epilogue.buffers, output)``; blocked in and out."""
    lanes = target.lanes()
    blocks = -(-spec.c // lanes)
    rows, columns = spec.windows()
    combine = maximum if spec.mode == "max" else add
    sum_type = spec.dtype if spec.mode == "max" and is_integer(spec.dtype) else accumulator(spec.dtype)
    inputs = (BufferSpec("data", spec.n * blocks * spec.h * spec.w * lanes, spec.dtype),)
    output = BufferSpec("output", spec.n * blocks * rows.out * columns.out * lanes, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        (data,) = main

        def gather(tile: RegisterTile, plane: Index, y: Index, x: Index, run: TileRun) -> None:
            begin, end = tap_bounds(rows, y)
            with loop(end, begin) as ky:
                image_row = plane * rows.size + y * rows.stride + ky * rows.dilation - rows.pad
                first = bind((image_row * columns.size + x * columns.stride - columns.pad) * lanes)

                def take(kx: Index, positions: tuple[int, ...]) -> None:
                    for position in positions:
                        column = position * columns.stride + kx * columns.dilation
                        tile[position] = combine(tile[position], load(data, first + column * lanes, lanes))

                for_each_tap(columns, run, x, take)

        def write_tile(plane: Index, y: Index, x: Index, run: TileRun) -> None:
            tile = RegisterTile(run.width, lanes, sum_type)
            tile.fill(_lowest(spec.dtype) if spec.mode == "max" else 0)
            gather(tile, plane, y, x, run)
            image, channel = plane // blocks, plane % blocks * lanes
            for position in range(run.width):
                value = tile[position]
                if spec.mode == "avg":
                    value = mean(value, broadcast(_reciprocal_count(spec, y, x + position), lanes))
                flat = ((plane * rows.out + y) * columns.out + x + position) * lanes
                at = VectorAt((image, channel, y, x + position), 1, lanes, flat)
                out.store(value, at)

        for_each_tile(spec.n * blocks, rows, columns, knobs.columns, knobs.pieces, write_tile)

    return make_prim_func("pool2d", inputs, output, body, epilogue)


def _lowest(dtype: str) -> float:
    """What every number is at least as large as."""
    return INTEGER_RANGES[dtype][0] if is_integer(dtype) else float("-inf")


def _reciprocal_count(spec: PoolSpec, y: Index, x: Index) -> Expr:
    """One over the number of input positions that an average covers at output (y, x)."""
    rows, columns = spec.windows()
    count = _covered(spec, rows, spec.padding[2], y) * _covered(spec, columns, spec.padding[3], x)
    if isinstance(count, int):
        return tirx.const(1.0 / count, "float32")
    return tirx.const(1.0, "float32") / tirx.Cast("float32", count)


def _covered(spec: PoolSpec, window: Window, pad_after: int, position: Index) -> Expr:
    """Positions that a window covers on one axis; a Python int if every window covers equally many."""
    low, high = (-window.pad, window.size + pad_after) if spec.count_include_pad else (0, window.size)
    last = (window.out - 1) * window.stride - window.pad
    if -window.pad >= low and last + window.kernel <= high:
        return window.kernel
    start = position * window.stride - window.pad
    return tirx.min(start + window.kernel, high) - tirx.max(start, low)


@dataclass(frozen=True)
class GlobalPoolSpec:
    """``kind`` (see `ReduceSpec`) over height and width of a blocked (n, c, h, w) input; the output is (n, c, 1, 1)."""

    n: int
    c: int
    h: int
    w: int
    kind: str = "mean"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if min(self.n, self.c, self.h, self.w) < 1:
            raise ValueError(f"sizes must be positive: {self}")
        if self.kind not in COMBINE:
            raise ValueError(f"kind must be one of {', '.join(COMBINE)}, not {self.kind!r}")


def build_global(spec: GlobalPoolSpec, target: Cpu, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the reduction as a PrimFunc ``(input, *epilogue.buffers, output)``; it has no knobs."""
    lanes = target.lanes()
    blocks = -(-spec.c // lanes)
    size = spec.h * spec.w
    count = min(GLOBAL_ACCUMULATORS, size)
    combine = COMBINE[spec.kind]
    sum_type = spec.dtype if spec.kind == "max" and is_integer(spec.dtype) else accumulator(spec.dtype)
    neutral = _lowest(spec.dtype) if spec.kind == "max" else NEUTRAL[spec.kind]
    inputs = (BufferSpec("data", spec.n * blocks * size * lanes, spec.dtype),)
    output = BufferSpec("output", spec.n * blocks * lanes, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        (data,) = main
        with shared_loop((spec.n, blocks), bytes_moved=4 * inputs[0].size) as (image, block):
            plane = bind(image * blocks + block)
            sums = Accumulation(combine, neutral, sum_type)
            tile = sums.tile(count, lanes)

            def accumulate(step: Index, terms: int, tile: RegisterTile) -> None:
                for index in range(terms):
                    place = (plane * size + step * count + index) * lanes
                    sums.add(tile, index, widened(load(data, place, lanes), sum_type))

            sums.loop(size // count, tile, lambda step, part: accumulate(step, count, part))
            accumulate(size // count, size % count, tile)
            total = combine_all(tile, combine)
            if spec.kind == "mean":
                total = mean(total, constant(1.0 / size, lanes))
            at = VectorAt((image, block * lanes, 0, 0), 1, lanes, plane * lanes)
            out.store(total, at)

    return make_prim_func("global_pool2d", inputs, output, body, epilogue)
