"""Pooling over windows of a [N,C,H,W] tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Storage
from ..types import TensorType
from .convolution import window_extent


@dataclass(frozen=True)
class Pool2dAttrs(Attrs):
    """Pairs are (height, width); padding is the same on both sides; ``ceil`` rounds the extent up."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        if min(*self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"kernel, stride and dilation must be positive and padding not negative: {self}")
        spans = tuple(self.dilation[i] * (self.kernel[i] - 1) + 1 for i in range(2))
        if any(2 * self.padding[i] > spans[i] for i in range(2)):
            raise ValueError(f"padding must be at most half of the window, so that none lies in it entirely: {self}")


class Pool2dOp(Op):
    """Base of the windowed poolings."""

    x = Operand()
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.BLOCKED

    def infer_types(self) -> tuple[TensorType, ...]:
        x, attrs = self.x.type, self.attrs
        if x.rank != 4:
            raise self.error(f"needs a 4-d operand, got {x}")
        extents = tuple(
            window_extent(
                x.shape[2 + i],
                attrs.kernel[i],
                attrs.stride[i],
                attrs.padding[i],
                attrs.padding[i],
                attrs.dilation[i],
                attrs.ceil,
            )
            for i in range(2)
        )
        if min(extents) < 1:
            raise self.error(f"window {attrs.kernel} is larger than the padded operand {x}")
        return (x.with_shape((*x.shape[:2], *extents)),)


class MaxPool2dOp(Pool2dOp, name="max_pool2d", attrs=Pool2dAttrs):
    """Largest element of each window; padding never wins."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        attrs = self.attrs
        return functional.max_pool2d(x, attrs.kernel, attrs.stride, attrs.padding, attrs.dilation, attrs.ceil)


class AvgPool2dOp(Pool2dOp, name="avg_pool2d", attrs=Pool2dAttrs):
    """Mean of each window; ``count_include_pad`` divides by the whole window at the border too."""

    linear = True

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.attrs.dilation != (1, 1):
            raise self.error("average pooling has no dilation")
        return super().infer_types()

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        attrs = self.attrs
        return functional.avg_pool2d(x, attrs.kernel, attrs.stride, attrs.padding, attrs.ceil, attrs.count_include_pad)


@dataclass(frozen=True)
class AdaptivePoolAttrs(Attrs):
    """Height and width of the result."""

    size: tuple[int, int]


class AdaptiveAvgPool2dOp(Op, name="adaptive_avg_pool2d", attrs=AdaptivePoolAttrs):
    """Means over windows that divide the operand into ``size`` parts."""

    x = Operand()
    linear = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.BLOCKED

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if x.rank != 4 or min(self.attrs.size) < 1:
            raise self.error(f"needs a 4-d operand and a positive size, got {x} and {self.attrs.size}")
        return (x.with_shape((*x.shape[:2], *self.attrs.size)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.adaptive_avg_pool2d(x, self.attrs.size)
