"""Convolution of volumes, such as clips of pictures: the direct convolution of each frame, over taps in depth as well.

    out[o, d, y, x] = sum over c, k, i, j of  w[o, c, k, i, j] * in[c, d*s + k - p, y*s + i - p, x*s + j - p]

Frames of the result are images of `direct`, whose sums go on over the frames that a kernel reaches. Nothing is copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, Epilogue, Index, VectorAt
from ..vector.builder import Output, bind, loop, split_index
from ..vector.operand_types import check_weight_shape
from ..windows.spatial import Window
from ..windows.window_loops import tap_bounds
from . import direct
from . import spec as conv2d_spec
from .direct import ConvolutionWriter, Image
from .space import candidates
from .spec import Conv2dKnobs, Conv2dSpec

__all__ = ["Conv2dKnobs", "VolumeSpec", "build", "candidates", "pack_weight"]


@dataclass(frozen=True)
class VolumeSpec(Conv2dSpec):
    """A convolution of frames, which the other fields describe, with a window in depth.

    Attributes
    ----------
    d
        Frames of the input.
    depth_kernel, depth_stride, depth_dilation
        The window in depth.
    depth_padding
        Frames of zeros before and after.
    """

    d: int = 1
    depth_kernel: int = 1
    depth_stride: int = 1
    depth_padding: tuple[int, int] = (0, 0)
    depth_dilation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.d, self.depth_kernel, self.depth_stride, self.depth_dilation) < 1 or min(self.depth_padding) < 0:
            raise ValueError(f"sizes must be positive and padding not negative: {self}")
        if self.out_d < 1:
            raise ValueError(f"the kernel is deeper than the padded input: {self}")

    @property
    def out_d(self) -> int:
        """Frames of the result."""
        room = self.d + sum(self.depth_padding) - self.depth_dilation * (self.depth_kernel - 1) - 1
        return room // self.depth_stride + 1

    @property
    def images(self) -> int:
        """Planes of results that each channel has, over the whole batch."""
        return self.n * self.out_d

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return self.depth_kernel * super().taps

    @property
    def depth(self) -> Window:
        """The window in depth."""
        return Window(
            self.d, self.out_d, self.depth_kernel, self.depth_stride, self.depth_padding[0], self.depth_dilation
        )

    def input_size(self, target: Cpu) -> int:
        """Elements of the input's buffer."""
        return self.d * super().input_size(target)

    def output_size(self, target: Cpu) -> int:
        """Elements of the output's buffer."""
        return self.out_d * super().output_size(target)


def pack_weight(spec: VolumeSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder a weight of shape (o, c / groups, kd, kh, kw) the way the kernel reads it: one of (kd * kh, kw) taps."""
    check_weight_shape(weight, (spec.o, spec.c // spec.groups, spec.depth_kernel, *spec.kernel))
    height, width = spec.depth_kernel * spec.kernel[0], spec.kernel[1]
    flat = Conv2dSpec(
        1,
        spec.c,
        height,
        width,
        spec.o,
        (height, width),
        groups=spec.groups,
        input_layout=spec.input_layout,
        dtype=spec.dtype,
    )
    return conv2d_spec.pack_weight(flat, target, knobs, weight.flatten(2, 3))


def build(spec: VolumeSpec, target: Cpu, knobs: Conv2dKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; the output is blocked."""
    return direct.build(spec, target, knobs, epilogue, _Writer)


class _Frame(Image):
    """One frame of the result."""

    def __init__(self, conv: ConvolutionWriter, index: Index) -> None:
        spec = conv.spec
        assert isinstance(spec, VolumeSpec)
        n, self.d = split_index(index, (spec.n, spec.out_d))
        super().__init__(conv, n)
        self.depth = spec.depth
        self.kd: Index = 0

    @contextlib.contextmanager
    def depth_taps(self) -> Iterator[None]:
        begin: Index = 0
        end: Index = self.depth.kernel
        if not self.depth.reads_all(0, self.depth.out):
            begin, end = tap_bounds(self.depth, tirx.const(self.d) if isinstance(self.d, int) else self.d)
        with loop(end, begin) as self.kd:
            yield

    def plane(self, channel: Index) -> Index:
        frame = self.d * self.depth.stride + self.kd * self.depth.dilation - self.depth.pad
        return bind(channel * self.depth.size + frame)

    def tap(self, block: Index) -> Index:
        return block * self.depth.kernel + self.kd

    def at(self, block: Index, y: Index, x: Index) -> VectorAt:
        conv = self.conv
        rows, columns = conv.row_window, conv.column_window
        frame = (self.n * conv.output_blocks + block) * self.depth.out + self.d
        flat = ((frame * rows.out + y) * columns.out + x) * conv.lanes
        if conv.spec.pointwise:
            y, x = y // conv.spec.out_w, y % conv.spec.out_w
        return VectorAt((self.n, block * conv.lanes, self.d, y, x), 1, conv.lanes, flat)


class _Writer(ConvolutionWriter):
    """Writes frames."""

    image = _Frame

    def __init__(
        self, spec: VolumeSpec, target: Cpu, knobs: Conv2dKnobs, data: Buffer, weight: Buffer, out: Output
    ) -> None:
        super().__init__(spec, target, knobs, data, weight, out)
        if not self.blocked:
            self.channel_step *= spec.d
