"""Direct convolution of integers: the tile of `tersor.targets.templates.conv2d.direct`, four input channels at a time.

    tile[row, column, vector] += broadcast(four channels of input[row, column]) . weight[vector]

A block of channels in memory is a few words of four bytes, so that the loops are those of float32 with a quarter of the
channels. Taps that would read padding are left out; the sums start from what corrects the zero point for those that
remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue, Expr, Index
from ..machine_model import MULTIPLY_ADDS
from ..vector.builder import Output, load, make_prim_func
from ..vector.compensation import append_table, packed_bytes, view_as, view_table
from ..vector.dot_product import WORD, DotProduct, layer_product
from ..vector.narrowing import TOGETHER, can_narrow
from ..vector.operand_types import is_integer
from . import direct as conv2d
from . import spec as conv2d_spec
from .borders import BorderClasses, border_table
from .direct import ConvolutionWriter, Image
from .spec import Conv2dKnobs, Conv2dSpec, output_groups
from .transposed import TransposedSpec

FEW_SUMS = 16  # of a register tile

ConvolutionT = TypeVar("ConvolutionT", Conv2dSpec, TransposedSpec)


def supports(spec: Conv2dSpec, target: Cpu) -> bool:
    """Whether this template computes ``spec`` on ``target``."""
    return is_integer(spec.dtype) and spec.input_layout == "blocked"


def candidates(spec: Conv2dSpec, target: Cpu) -> list[Conv2dKnobs]:
    """Feasible knobs, the best analytic guess first: a word costs what one channel does in float32.

    Weights that do not stay in L1 are prefetched: even from L2 they come too late otherwise. Where a cycle has one
    product, few sums hide its latency; and a small tile is quantized and stored while the next one is multiplied.
    """
    return word_candidates(spec, target, _small_tiles_first)


def _small_tiles_first(spec: Conv2dSpec, target: Cpu) -> list[Conv2dKnobs]:
    found = conv2d.candidates(spec, target)
    if not spec.pointwise or target.multiply_adds >= MULTIPLY_ADDS or not can_narrow(target):
        return found
    return sorted(found, key=lambda knobs: knobs.vectors * knobs.rows != FEW_SUMS or knobs.rows % TOGETHER > 0)


def word_candidates(
    spec: ConvolutionT, target: Cpu, candidates: Callable[[ConvolutionT, Cpu], list[Conv2dKnobs]]
) -> list[Conv2dKnobs]:
    """`candidates` for words of channels, given those for channels."""
    spare = replace(target, vector_registers=target.vector_registers - layer_product(target, spec).extra_registers)
    if spec.groups > 1:
        found = candidates(spec, spare)
    else:
        in_words = candidates(replace(spec, c=-(-spec.c // WORD)), spare)
        found = [replace(knobs, block_chunk=WORD * knobs.block_chunk) for knobs in in_words]
    weight_bytes = spec.o * spec.c // spec.groups * spec.kernel[0] * spec.kernel[1]
    return found if 2 * weight_bytes <= target.l1_bytes else sorted(found, key=lambda knobs: not knobs.prefetch)


def pack_weight(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight of shape (o, c / groups, kh, kw), and append what corrects the zero point; flat."""
    packed = conv2d_spec.pack_weight(spec, target, knobs, weight, WORD)
    zero = spec.zero_point + layer_product(target, spec).offset
    if not zero:
        return packed
    rows, columns = (BorderClasses(window) for window in spec.windows())
    outputs = spec.output_blocks(target) * target.lanes()
    return append_table(packed, border_table(weight, zero, rows, columns, outputs))


def build(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the convolution as a PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    lanes = target.lanes()
    products = layer_product(target, spec)
    rows, columns = (BorderClasses(window) for window in spec.windows())
    table = len(rows.representatives) * len(columns.representatives) * spec.output_blocks(target) * lanes
    table = table if spec.zero_point + products.offset else 0
    channels = sum(g.count * g.vectors * g.span for g in output_groups(spec, target, knobs.vectors)) * lanes
    weight_bytes = channels * spec.kernel[0] * spec.kernel[1] * lanes
    data_bytes = spec.input_size(target)
    inputs = (
        BufferSpec("data", data_bytes, spec.dtype),
        BufferSpec("weight", packed_bytes(weight_bytes, table), "int8"),
    )
    output = BufferSpec("output", spec.output_size(target), epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        words = view_as(main[0], "int32", data_bytes // WORD), view_as(main[1], "int32", weight_bytes // WORD)
        writer = CompensatedWriter(spec, target, knobs, *words, out, products)
        if table:
            writer.start_from(view_table(main[1], weight_bytes, table), rows, columns)
        writer.write()

    return make_prim_func("conv2d_int8", inputs, output, body, epilogue)


class CompensatedWriter(ConvolutionWriter):
    """Starts sums from a table of compensations [row class, column class, output], one for each kind of image."""

    arithmetic: DotProduct
    table: Buffer = None

    def start_from(self, table: Buffer, rows: BorderClasses, columns: BorderClasses) -> None:
        """Set what sums start from; zero otherwise."""
        self.table = table
        self.row_classes = rows
        self.column_classes = columns

    def first_sum(self, image: Image, output_block: Index, y: Index, x: int) -> Expr:
        """The compensation of one vector at a position."""
        if self.table is None:
            return super().first_sum(image, output_block, y, x)
        place = self.row_classes.of(y) * len(self.column_classes.representatives) + self.column_classes.of(x)
        return load(self.table, image.first_sums + (place * self.output_blocks + output_block) * self.lanes, self.lanes)
