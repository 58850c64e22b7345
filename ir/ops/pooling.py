"""Pooling over windows of images [N,C,H,W] and volumes [N,C,D,H,W]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Narrowing, OnIntegers, Storage
from ..types import TensorType
from .convolution import window_extent
from .integers import QUANTIZED, mean_of_sums, mean_type


@dataclass(frozen=True)
class PoolAttrs(Attrs):
    """Base of the attributes of poolings, which have one number for each dimension of the window."""

    def __post_init__(self) -> None:
        kernel, stride, padding, dilation = (
            getattr(self, name) for name in ("kernel", "stride", "padding", "dilation")
        )
        if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
            raise ValueError(f"kernel, stride and dilation must be positive and padding not negative: {self}")
        spans = (step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True))
        if any(2 * before > span for before, span in zip(padding, spans, strict=True)):
            raise ValueError(f"padding must be at most half of the window, so that none lies in it entirely: {self}")


@dataclass(frozen=True)
class Pool2dAttrs(PoolAttrs):
    """Pairs are (height, width); padding is the same on both sides; ``ceil`` rounds the extent up."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False
    count_include_pad: bool = True


@dataclass(frozen=True)
class Pool3dAttrs(PoolAttrs):
    """As `Pool2dAttrs`, with (depth, height, width)."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    ceil: bool = False
    count_include_pad: bool = True


class PoolOp(Op):
    """Base of the windowed poolings: [N,C,H,W] or [N,C,D,H,W], as many dimensions as the window has."""

    x = Operand()
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.BLOCKED
    leads_group = True
    default_narrowing = Narrowing.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        x, attrs = self.x.type, self.attrs
        if x.rank != 2 + len(attrs.kernel):
            raise self.error(f"needs a {2 + len(attrs.kernel)}-d operand, got {x}")
        windows = zip(
            x.shape[2:], attrs.kernel, attrs.stride, attrs.padding, attrs.padding, attrs.dilation, strict=True
        )
        extents = tuple(window_extent(*window, attrs.ceil) for window in windows)
        if min(extents) < 1:
            raise self.error(f"window {attrs.kernel} is larger than the padded operand {x}")
        return (x.with_shape((*x.shape[:2], *extents)),)

    def apart(self, index: int, axis: int) -> int | None:
        return axis if axis < 2 else None


class Pool2dOp(PoolOp):
    """Base of the poolings of images."""

    any_image_order = True


class MaxPool2dOp(Pool2dOp, name="max_pool2d", attrs=Pool2dAttrs):
    """Largest element of each window; padding never wins."""

    on_integers = OnIntegers.MOVES

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        attrs = self.attrs
        return functional.max_pool2d(x, attrs.kernel, attrs.stride, attrs.padding, attrs.dilation, attrs.ceil)


class AvgPool2dOp(Pool2dOp, name="avg_pool2d", attrs=Pool2dAttrs):
    """Mean of each window; ``count_include_pad`` divides by the whole window at the border too.

    Means of 8-bit integers are f32: the exact sum, to which padding adds 0, times the f32 reciprocal of the count.
    """

    linear = True
    on_integers = OnIntegers.MEANS

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.attrs.dilation != (1, 1):
            raise self.error("average pooling has no dilation")
        (result,) = super().infer_types()
        return (result.with_dtype(mean_type(self, self.x.type, math.prod(self.attrs.kernel))),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        if self.x.type.dtype not in QUANTIZED:
            return self._average(x)
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=torch.float64)
        covered = self._average(ones, divisor=1)  # elements in each window, padding left out
        return mean_of_sums(self._average(x.double(), divisor=1), (covered / self._average(ones)).round())

    def _average(self, x: torch.Tensor, divisor: int | None = None) -> torch.Tensor:
        attrs = self.attrs
        window = (attrs.kernel, attrs.stride, attrs.padding, attrs.ceil, attrs.count_include_pad)
        return functional.avg_pool2d(x, *window, divisor_override=divisor)


class MaxPool3dOp(PoolOp, name="max_pool3d", attrs=Pool3dAttrs):
    """Largest element of each window; padding never wins."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        attrs = self.attrs
        return functional.max_pool3d(x, attrs.kernel, attrs.stride, attrs.padding, attrs.dilation, attrs.ceil)


class AvgPool3dOp(PoolOp, name="avg_pool3d", attrs=Pool3dAttrs):
    """Mean of each window; ``count_include_pad`` divides by the whole window at the border too."""

    linear = True

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.attrs.dilation != (1, 1, 1):
            raise self.error("average pooling has no dilation")
        return super().infer_types()

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        attrs = self.attrs
        ends = (attrs.ceil, attrs.count_include_pad)
        # Means of means: PyTorch's own has no narrow types, and refuses windows that only padding makes fit.
        flat = functional.avg_pool2d(x.flatten(1, 2), attrs.kernel[1:], attrs.stride[1:], attrs.padding[1:], *ends)
        frames = flat.reshape(*x.shape[:3], -1)
        deep, step, pad = (attrs.kernel[0], 1), (attrs.stride[0], 1), (attrs.padding[0], 0)
        return functional.avg_pool2d(frames, deep, step, pad, *ends).reshape(self.result.shape)


@dataclass(frozen=True)
class AdaptivePoolAttrs(Attrs):
    """Height and width of the result."""

    size: tuple[int, int]


class AdaptiveAvgPool2dOp(Op, name="adaptive_avg_pool2d", attrs=AdaptivePoolAttrs):
    """Means over windows that divide the operand into ``size`` parts; f32 for 8-bit integers, see `AvgPool2dOp`."""

    x = Operand()
    linear = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.BLOCKED
    on_integers = OnIntegers.MEANS
    leads_group = True
    any_image_order = True

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if x.rank != 4 or min(self.attrs.size) < 1:
            raise self.error(f"needs a 4-d operand and a positive size, got {x} and {self.attrs.size}")
        terms = math.prod(x.shape[2:]) // math.prod(self.attrs.size)
        if x.dtype in QUANTIZED and any(x.shape[2 + i] % self.attrs.size[i] for i in range(2)):
            raise self.error(f"{x} has no {self.attrs.size} windows of one size; average it in floating point")
        return (TensorType((*x.shape[:2], *self.attrs.size), mean_type(self, x, terms)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        if self.x.type.dtype in QUANTIZED:
            window = tuple(x.shape[2 + i] // self.attrs.size[i] for i in range(2))
            return mean_of_sums(functional.avg_pool2d(x.double(), window, divisor_override=1), math.prod(window))
        return functional.adaptive_avg_pool2d(x, self.attrs.size)

    def apart(self, index: int, axis: int) -> int | None:
        return axis if axis < 2 else None
