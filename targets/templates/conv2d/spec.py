"""What a two-dimensional convolution computes, the knobs of its kernel, and how its weights are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ....ir.arrangement import Arrangement
from ....ir.ops.integers import WEIGHT_BITS
from ...machines.target import Cpu
from ..base import Index
from ..vector.operand_types import check_operands, check_weight_shape
from ..windows.spatial import Window


@dataclass(frozen=True)
class Conv2dSpec:
    """One convolution; sizes in elements, ``padding`` as (top, left, bottom, right).

    Attributes
    ----------
    n, c, h, w
        Input batch, channels, height and width.
    o
        Output channels.
    kernel, stride, dilation
        (height, width) pairs.
    groups
        Channel groups; divides ``c`` and ``o``.
    input_layout
        ``"blocked"`` (NCHW{lanes}c) or ``"plain"`` (NCHW). The output is always blocked.
    dtype
        Element type of input and packed weight, and sums are float32; or ``"uint8"`` or ``"int8"``: that of the input,
        with weights in int8 and sums in int32.
    zero_point
        The integer that stands for zero in the input: sums are over ``(x - zero_point) * w``.
    weight_bits
        Bits that all integers of the weight fit, 7 or 8; see `tersor.targets.templates.vector.dot_product`.
    """

    n: int
    c: int
    h: int
    w: int
    o: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_layout: Literal["blocked", "plain"] = "blocked"
    dtype: str = "float32"
    zero_point: int = 0
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        positive = (self.n, self.c, self.h, self.w, self.o, self.groups)
        if min(*positive, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"sizes must be positive and padding not negative: {self}")
        check_operands(self.dtype, self.zero_point, self.weight_bits)
        if self.c % self.groups or self.o % self.groups:
            raise ValueError(f"groups={self.groups} must divide c={self.c} and o={self.o}")
        if self.input_layout not in ("blocked", "plain"):
            raise ValueError(f"unknown input layout {self.input_layout!r}; use 'blocked' or 'plain'")
        if self.out_h < 1 or self.out_w < 1:
            raise ValueError(f"the kernel is larger than the padded input: {self}")

    @property
    def out_h(self) -> int:
        """Output height."""
        top, _, bottom, _ = self.padding
        return (self.h + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1

    @property
    def out_w(self) -> int:
        """Output width."""
        _, left, _, right = self.padding
        return (self.w + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-adds, those that padding makes zero included (the usual count)."""
        return self.images * self.o * self.out_h * self.out_w * self.taps * (self.c // self.groups)

    @property
    def images(self) -> int:
        """Planes of results that each channel has, over the whole batch."""
        return self.n

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own, with one output."""
        return 1 < self.groups == self.c == self.o

    @property
    def pointwise(self) -> bool:
        """Whether output position i reads input position i only: then height and width flatten into one axis."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.padding)

    def windows(self) -> tuple[Window, Window]:
        """The row and column windows; a pointwise convolution is one column of ``h * w`` rows."""
        if self.pointwise:
            return Window(self.h * self.w, self.h * self.w, 1, 1, 0, 1), Window(1, 1, 1, 1, 0, 1)
        return self.axes()

    def axes(self) -> tuple[Window, Window]:
        """The vertical and the horizontal axis, those of a pointwise convolution too."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        return (
            Window(self.h, self.out_h, kh, sh, self.padding[0], dh),
            Window(self.w, self.out_w, kw, sw, self.padding[1], dw),
        )

    def input_block(self, target: Cpu) -> int:
        """Channels that the kernel accumulates between two taps: the vector width if blocked, else all."""
        return target.lanes() if self.input_layout == "blocked" else self.c

    def input_blocks(self, target: Cpu) -> int:
        """Channel blocks of the input, a padded last one included."""
        return -(-self.c // self.input_block(target))

    def output_blocks(self, target: Cpu) -> int:
        """Channel blocks of the output, a padded last one included."""
        return -(-self.o // target.lanes())

    def input_size(self, target: Cpu) -> int:
        """Elements of the input's buffer."""
        return self.n * self.input_blocks(target) * self.input_block(target) * self.h * self.w

    def output_size(self, target: Cpu) -> int:
        """Elements of the output's buffer."""
        return self.n * self.output_blocks(target) * target.lanes() * self.out_h * self.out_w


@dataclass(frozen=True)
class Conv2dKnobs:
    """How the kernel is tiled.

    Attributes
    ----------
    vectors
        Output channel blocks in the register tile.
    rows, columns
        Output positions in the register tile, at most; a pointwise convolution has only rows.
    block_chunk
        Input channel blocks accumulated before the tile moves on; 0 means all of them, and no partial sums.
    order
        What stays in cache while the other runs: ``"weights"`` or ``"rows"``.
    spatial_units
        Pieces that the row tiles of an image are divided into for threads.
    unroll
        Input channels per iteration of the innermost loop.
    prefetch
        How many weight vectors ahead of their use to prefetch them into L1; 0 means not at all.
    """

    vectors: int
    rows: int
    columns: int
    block_chunk: int = 0
    order: Literal["weights", "rows"] = "weights"
    spatial_units: int = 1
    unroll: int = 1
    prefetch: int = 0


@dataclass(frozen=True)
class OutputGroups:
    """Consecutive groups of ``vectors`` output channel blocks that share one piece of code.

    Each group reads ``span`` input blocks from :func:`first_input_block` on. With convolution groups, that may be
    more than its own channels; the packed weights are zero there (block-diagonal weights, expanded).
    """

    first: int
    vectors: int
    count: int
    span: int


def output_groups(spec: Conv2dSpec, target: Cpu, vectors: int) -> list[OutputGroups]:
    """Divide the output blocks into groups of ``vectors`` and one smaller remainder group."""
    blocks = spec.output_blocks(target)
    runs = [(0, vectors, blocks // vectors), (blocks // vectors * vectors, blocks % vectors, 1)]
    return [
        OutputGroups(first, size, count, _span(spec, target, first, size, count))
        for first, size, count in runs
        if size and count
    ]


def _span(spec: Conv2dSpec, target: Cpu, first: int, vectors: int, count: int) -> int:
    if spec.groups == 1:
        return spec.input_blocks(target)
    return max(_group_span(spec, target, first + i * vectors, vectors) for i in range(count))


def _group_span(spec: Conv2dSpec, target: Cpu, first: int, vectors: int) -> int:
    lanes, block = target.lanes(), spec.input_block(target)
    last_output = min((first + vectors) * lanes, spec.o) - 1
    out_per_group, in_per_group = spec.o // spec.groups, spec.c // spec.groups
    begin = first * lanes // out_per_group * in_per_group
    end = (last_output // out_per_group + 1) * in_per_group
    return -(-end // block) - begin // block


def first_input_block(spec: Conv2dSpec, target: Cpu, first_output_block: Index) -> Index:
    """First input block that the group starting at ``first_output_block`` reads."""
    if spec.groups == 1:
        return 0
    out_per_group, in_per_group = spec.o // spec.groups, spec.c // spec.groups
    channel = first_output_block * target.lanes() // out_per_group * in_per_group
    return channel // spec.input_block(target)


def reached_input_blocks(spec: Conv2dSpec, target: Cpu, groups: OutputGroups) -> int:
    """Input blocks that the last group reaches with its full span; where the input has fewer, it starts earlier."""
    last = groups.first + (groups.count - 1) * groups.vectors
    return first_input_block(spec, target, last) + groups.span


def pack_weight(
    spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor, packing: int = 1
) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kh, kw) the way the kernel reads it, ``packing`` channels at a time.

    Returns
    -------
    torch.Tensor
        Flat and contiguous: for each group of output blocks [input block, kh, kw, input channels, output channel,
        input channel of ``packing``], zero where a channel is padding or belongs to another convolution group.
    """
    check_weight_shape(weight, (spec.o, spec.c // spec.groups, *spec.kernel))
    lanes, block = target.lanes(), spec.input_block(target)
    dense = _dense_weight(spec, target, weight)
    pieces = []
    for groups in output_groups(spec, target, knobs.vectors):
        rows = groups.vectors * lanes
        for index in range(groups.count):
            first = groups.first + index * groups.vectors
            begin = first_input_block(spec, target, first)
            begin = min(begin, spec.input_blocks(target) - groups.span) * block
            piece = dense[first * lanes : first * lanes + rows, begin : begin + groups.span * block]
            piece = piece.reshape(rows, groups.span, block // packing, packing, *spec.kernel)
            pieces.append(piece.permute(1, 4, 5, 2, 0, 3).reshape(-1))
    return torch.cat(pieces)


def arrangement(spec: Conv2dSpec, target: Cpu, knobs: Conv2dKnobs) -> Arrangement | None:
    """Where `pack_weight` puts the numbers of a weight; None where groups of output blocks are of two kinds."""
    groups, *others = output_groups(spec, target, knobs.vectors)
    if others or spec.groups != 1:
        return None
    rows, block = groups.vectors * target.lanes(), spec.input_block(target)
    axes = (groups.count, groups.span, *spec.kernel, block, rows)
    return Arrangement(axes, (0, 5, 1, 4, 2, 3), (groups.count * rows, groups.span * block, *spec.kernel))


def _dense_weight(spec: Conv2dSpec, target: Cpu, weight: torch.Tensor) -> torch.Tensor:
    """The weight of the same convolution without groups (block-diagonal), channels padded to whole blocks."""
    outputs = spec.output_blocks(target) * target.lanes()
    inputs = spec.input_blocks(target) * spec.input_block(target)
    dense = weight.new_zeros(outputs, inputs, *spec.kernel)
    out_per_group, in_per_group = spec.o // spec.groups, spec.c // spec.groups
    for group, part in enumerate(weight.chunk(spec.groups)):
        rows = slice(group * out_per_group, (group + 1) * out_per_group)
        dense[rows, group * in_per_group : (group + 1) * in_per_group] = part
    return dense
