"""Depthwise convolution in blocked layout: one row of output vectors at a time, each tap of a kernel row in a register.

for plane, row in parallel(image and channel block, rows):
    for column tile, kernel row inside the input:
        tile[column] += input[column * stride + kx] * weight[kx]    for every kx
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index, VectorAt
from ..vector.builder import Output, RegisterTile, bind, load, loop, make_prim_func
from ..vector.operand_types import check_weight_shape
from ..windows.spatial import TileRun
from ..windows.window_loops import for_each_tap, for_each_tile, piece_counts, tap_bounds, tile_widths
from .spec import Conv2dSpec


@dataclass(frozen=True)
class DepthwiseKnobs:
    """``columns`` outputs in the register tile, and ``pieces`` of each plane's rows for threads."""

    columns: int
    pieces: int


def candidates(spec: Conv2dSpec, target: Cpu) -> list[DepthwiseKnobs]:
    """Feasible knobs, the best analytic guess first."""
    rows, columns = spec.windows()
    shares = piece_counts(spec.n * spec.output_blocks(target), rows.out, target)
    widths = tile_widths(columns, target, columns.kernel)
    return [DepthwiseKnobs(width, pieces) for pieces in shares for width in widths]


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (c, 1, kh, kw) to [channel block, kh, kw, lane], flat and zero padded."""
    check_weight_shape(weight, (spec.c, 1, *spec.kernel))
    lanes = target.lanes()
    blocks = -(-spec.c // lanes)
    padded = weight.new_zeros(blocks * lanes, *spec.kernel)
    padded[: spec.c] = weight[:, 0]
    return padded.reshape(blocks, lanes, *spec.kernel).permute(0, 2, 3, 1).reshape(-1)


def build(spec: Conv2dSpec, target: Cpu, knobs: DepthwiseKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    lanes = target.lanes()
    blocks = spec.output_blocks(target)
    rows, columns = spec.windows()
    inputs = (
        BufferSpec("data", spec.n * blocks * spec.h * spec.w * lanes, spec.dtype),
        BufferSpec("weight", blocks * rows.kernel * columns.kernel * lanes, spec.dtype),
    )
    output = BufferSpec("output", spec.n * blocks * rows.out * columns.out * lanes, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        data, weight = main

        def accumulate(tile: RegisterTile, plane: Index, y: Index, x: Index, run: TileRun) -> None:
            begin, end = tap_bounds(rows, y)
            with loop(end, begin) as ky:
                image_row = plane * rows.size + y * rows.stride + ky * rows.dilation - rows.pad
                first = bind((image_row * columns.size + x * columns.stride - columns.pad) * lanes)
                weight_row = bind((plane % blocks * rows.kernel + ky) * (columns.kernel * lanes))
                vectors: dict[int, Expr] = {}  # inputs that taps share which are written out

                def read(column: Index) -> Expr:
                    if not isinstance(column, int):
                        return load(data, first + column * lanes, lanes)
                    if column not in vectors:
                        vectors[column] = bind(load(data, first + column * lanes, lanes))
                    return vectors[column]

                def multiply(kx: Index, positions: tuple[int, ...]) -> None:
                    factor = bind(load(weight, weight_row + kx * lanes, lanes))
                    for position in positions:
                        column = position * columns.stride + kx * columns.dilation
                        tile.multiply_add(position, read(column), factor)

                for_each_tap(columns, run, x, multiply)

        def write_tile(plane: Index, y: Index, x: Index, run: TileRun) -> None:
            tile = RegisterTile(run.width, lanes)
            tile.fill(0.0)
            accumulate(tile, plane, y, x, run)
            image, channel = plane // blocks, plane % blocks * lanes
            for position in range(run.width):
                flat = ((plane * rows.out + y) * columns.out + x + position) * lanes
                place = (y // spec.w, y % spec.w) if spec.pointwise else (y, x + position)
                at = VectorAt((image, channel, *place), 1, lanes, flat)
                out.store(tile[position], at)

        for_each_tile(spec.n * blocks, rows, columns, knobs.columns, knobs.pieces, write_tile)

    return make_prim_func("depthwise_conv2d", inputs, output, body, epilogue)
