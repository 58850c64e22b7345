"""Kernels on tensor cores, and those that stand beside them: which template, which tile, which launch.

To add a template: its source in ``kernels/``, listed in `tersor.targets.cuda.kernel.LIBRARY`; a function here that
makes a `CudaKernel` of it; and the op that asks for it in `tersor.targets.cuda.anchors`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..machines.target import Gpu
from .epilogue import CudaEpilogue, scaled
from .kernel import Buffer, CudaKernel

CHUNK = 8  # halves in 16 bytes: what one asynchronous copy moves, and rows must be a multiple of
FEW_ROWS = 4  # up to here a matrix product is bound by reading the weight, not by multiplying
SLICE = 32  # of k that a block multiplies at once: BK in kernels/gemm.cuh
_GEMV_WARPS = 8
_THREADS = 256


@dataclass(frozen=True)
class BlockTile:
    """What a block computes of a matrix product.

    Attributes
    ----------
    m, n
        Rows and columns of a block.
    warp_m, warp_n
        Rows and columns of each of its warps.
    efficiency
        Share of the largest tile's speed on large products: smaller ones read shared memory more often.
    """

    m: int
    n: int
    warp_m: int
    warp_n: int
    efficiency: float

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.warp_m * (self.n // self.warp_n) * 32

    def __str__(self) -> str:
        return f"{self.m}, {self.n}, {self.warp_m}, {self.warp_n}"


# The efficiencies order the tiles; they are estimates, not measurements.
TILES = (
    BlockTile(128, 128, 64, 32, 1.0),
    BlockTile(128, 64, 32, 32, 0.85),
    BlockTile(64, 64, 32, 32, 0.7),
    BlockTile(32, 64, 16, 32, 0.5),
)

# What `choose_cut` reckons with on an H100: orders of magnitude, not measurements.
_SLICE_MICROSECONDS = 0.5  # of the largest tile
_SUM_MICROSECONDS = 3.0  # to start a second kernel
_SUM_MICROSECONDS_PER_NUMBER = 4e-6  # to write and read a partial sum
_SPLITS = (1, 2, 4, 8, 16)
_FEWEST_SLICES = 4  # of a part, so that its copies overlap with its products

_FACTORS = (Buffer("a", (), "float16"), Buffer("b", (), "float16"))
_SUMS = scaled("float32", 1.0)  # the epilogue that stores sums as they are


@dataclass(frozen=True)
class Cut:
    """How a matrix product is cut: into tiles, and the sums along k into ``splits`` parts that a second kernel adds."""

    tile: BlockTile
    splits: int = 1

    def __str__(self) -> str:
        return str(self.tile) if self.splits == 1 else f"{self.tile} / {self.splits}"


@dataclass(frozen=True)
class Extents:
    """A convolution's extents, in the order of the struct `Window` in ``kernels/common.cuh``."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    pad_top: int
    pad_left: int
    dilation_height: int
    dilation_width: int

    def __str__(self) -> str:
        return f"tersor::Window{{{', '.join(str(value) for value in vars(self).values())}}}"


@dataclass(frozen=True)
class Product:
    """A batch of matrix products: out [batch, m, n] = a [m, k] times b.

    ``b_rows`` tells that b is stored as [n, k], else as [k, n]. A step is the number of elements between the matrices
    of a batch, 0 for one matrix that all share.
    """

    batch: int
    m: int
    n: int
    k: int
    b_rows: bool
    step_a: int
    step_b: int


def choose_cut(target: Gpu, batch: int, m: int, n: int, k: int, *, split: bool) -> Cut:
    """The cut that should take least time: rounds of blocks over all multiprocessors, times the work of a block.

    With ``split`` the sum may be cut where there are too few tiles for all multiprocessors.
    """
    slices = math.ceil(k / SLICE)

    def microseconds(cut: Cut) -> float:
        tile, splits = cut.tile, cut.splits
        blocks = batch * math.ceil(m / tile.m) * math.ceil(n / tile.n) * splits
        work = tile.m * tile.n / (TILES[0].m * TILES[0].n) / tile.efficiency * math.ceil(slices / splits)
        summing = _SUM_MICROSECONDS + splits * m * n * _SUM_MICROSECONDS_PER_NUMBER if splits > 1 else 0.0
        return math.ceil(blocks / target.multiprocessors) * work * _SLICE_MICROSECONDS + summing

    counts = [count for count in _SPLITS if count == 1 or (split and slices >= count * _FEWEST_SLICES)]
    return min((Cut(tile, count) for tile in TILES for count in counts), key=microseconds)


def matmul(target: Gpu, product: Product, epilogue: CudaEpilogue, cut: Cut | None = None) -> CudaKernel:
    """A batch of matrix products on tensor cores, or for few rows one that streams the weight."""
    p = product
    if cut is None and p.b_rows and p.batch == 1 and p.m <= FEW_ROWS:
        return _gemv(p, epilogue)
    cut = cut or choose_cut(target, p.batch, p.m, p.n, p.k, split=p.b_rows and p.batch == 1)
    tile, vector_a = cut.tile, _flag(p.k % CHUNK == 0)
    vector_b = _flag((p.k if p.b_rows else p.n) % CHUNK == 0)
    grid = (math.ceil(p.m / tile.m), math.ceil(p.n / tile.n))
    extents = f"{p.m}, {p.n}, {p.k}"
    if cut.splits > 1:
        slices = math.ceil(math.ceil(p.k / SLICE) / cut.splits)
        call = (
            f"tersor::matmul_split<{tile}, {vector_a}, {vector_b}>(out, a, b, {_SUMS.construct}, {extents}, {slices});"
        )
        part = _kernel("matmul_split", str(cut), call, _SUMS, (*grid, cut.splits), tile.threads)
        return _then_sum(part, cut.splits, p.m, p.n, epilogue)
    name = "matmul_rows" if p.b_rows else "matmul_columns"
    call = (
        f"tersor::{name}<{tile}, {vector_a}, {vector_b}>"
        f"(out, a, b, {epilogue.construct}, {extents}, {p.step_a}L, {p.step_b}L);"
    )
    return _kernel(name, str(cut), call, epilogue, (*grid, p.batch), tile.threads)


def conv2d(
    target: Gpu, batch: int, n: int, window: Extents, epilogue: CudaEpilogue, cut: Cut | None = None
) -> CudaKernel:
    """A convolution to ``n`` channels on tensor cores; the window's channels must be a multiple of `CHUNK`."""
    pixels = batch * window.out_height * window.out_width
    k = window.kernel_height * window.kernel_width * window.channels
    cut = cut or choose_cut(target, 1, pixels, n, k, split=True)
    slices = math.ceil(math.ceil(k / SLICE) / cut.splits)
    last = epilogue if cut.splits == 1 else _SUMS
    call = f"tersor::conv2d_gemm<{cut.tile}>(out, a, b, {last.construct}, {pixels}, {n}, {window}, {slices});"
    grid = (math.ceil(pixels / cut.tile.m), math.ceil(n / cut.tile.n), cut.splits)
    kernel = _kernel("conv2d_gemm", str(cut), call, last, grid, cut.tile.threads)
    return kernel if cut.splits == 1 else _then_sum(kernel, cut.splits, pixels, n, epilogue)


def depthwise(batch: int, window: Extents, epilogue: CudaEpilogue) -> CudaKernel:
    """A depthwise convolution; the weight is stored as [kernel height, kernel width, channels]."""
    width = math.gcd(window.channels, CHUNK)
    total = batch * window.out_height * window.out_width * window.channels
    return _kernel(
        "depthwise",
        str(width),
        f"tersor::depthwise<{width}>(out, a, b, {epilogue.construct}, {total}L, {window});",
        epilogue,
        (math.ceil(total / width / _THREADS), 1, 1),
        _THREADS,
    )


def grouped(batch: int, n: int, groups: int, window: Extents, epilogue: CudaEpilogue) -> CudaKernel:
    """A convolution to ``n`` channels in groups; the weight is stored as [n, kernel height, kernel width, depth]."""
    total = batch * window.out_height * window.out_width * n
    return _kernel(
        "grouped_conv2d",
        "",
        f"tersor::grouped_conv2d(out, a, b, {epilogue.construct}, {total}L, {n}, {groups}, {window});",
        epilogue,
        (math.ceil(total / _THREADS), 1, 1),
        _THREADS,
    )


def _then_sum(part: CudaKernel, splits: int, m: int, n: int, epilogue: CudaEpilogue) -> CudaKernel:
    """``part``, whose output becomes a workspace, followed by the kernel that adds its parts."""
    total = m * n
    call = f"tersor::sum_splits(out, parts, {epilogue.construct}, {total}L, {n}, {splits});"
    grid = (math.ceil(total / _THREADS), 1, 1)
    last = _kernel("sum_splits", str(splits), call, epilogue, grid, _THREADS, (Buffer("parts", (), "float32"),))
    return replace(part, output=replace(part.output, shape=(splits, m, n)), then=last)


def _gemv(p: Product, epilogue: CudaEpilogue) -> CudaKernel:
    return _kernel(
        "gemv",
        str(_GEMV_WARPS),
        f"tersor::gemv<{_GEMV_WARPS}, {_flag(p.k % CHUNK == 0)}>(out, a, b, {epilogue.construct}, {p.n}, {p.k});",
        epilogue,
        (math.ceil(p.n / _GEMV_WARPS), p.m, 1),
        32 * _GEMV_WARPS,
    )


def _kernel(
    template: str,
    knobs: str,
    call: str,
    epilogue: CudaEpilogue,
    grid: tuple[int, int, int],
    threads: int,
    operands: tuple[Buffer, ...] = _FACTORS,
) -> CudaKernel:
    output, inputs = Buffer("out", (), epilogue.dtype), (*operands, *epilogue.buffers)
    return CudaKernel(template, knobs, epilogue.source, call, inputs, output, grid, threads)


def _flag(value: bool) -> str:
    return "true" if value else "false"
