"""Convolutions, ordinary and transposed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..blocks import Blocks, check_blocks
from ..core import Attrs
from ..traits import OnIntegers, Storage
from ..types import DType, TensorType
from .integers import QUANTIZED, WEIGHT_BITS, check_weight_bits, exact_sums, fits_bias, sum_type
from .layer import LayerOp


def window_extent(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool = False
) -> int:
    """Number of positions of a sliding window along one dimension (PyTorch's rule, its ceil mode included).

    In ceil mode a last window that would start in the padding after the data is dropped.
    """
    span = size + before + after - dilation * (kernel - 1) - 1
    extent = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (extent - 1) * stride >= size + before:
        extent -= 1
    return extent


@dataclass(frozen=True)
class Conv2dAttrs(Attrs):
    """``padding`` is (top, left, bottom, right) zeros; the other pairs are (height, width).

    ``zero_point`` is the integer that stands for zero in an operand of 8-bit integers, and fills its padding.
    ``blocks`` says where the weight of a 1x1 window is zero (`tersor.ir.blocks`).
    ``weight_bits`` says how many bits all integers of the weight fit, 7 or 8.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    zero_point: int = 0
    blocks: Blocks = ()
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        check_weight_bits(self.weight_bits)
        if min(*self.stride, *self.dilation, self.groups) < 1 or min(self.padding) < 0:
            raise ValueError(f"stride, dilation and groups must be positive and padding not negative: {self}")


class ConvolutionOp(LayerOp):
    """Base of convolutions over windows of as many dimensions as ``stride`` has."""

    default_storage = Storage.BLOCKED

    @property
    def channel_groups(self) -> int:
        """As many as the attribute says."""
        return self.attrs.groups

    def _window_type(self, dtype: DType) -> TensorType:
        """The result's type, all operands but their element types being checked."""
        x, weight, attrs = self.x.type, self.weight.type, self.attrs
        check_channels(self, len(attrs.stride) + 2)
        before, after = attrs.padding[: len(attrs.stride)], attrs.padding[len(attrs.stride) :]
        windows = zip(x.shape[2:], weight.shape[2:], attrs.stride, before, after, attrs.dilation, strict=True)
        extents = [window_extent(*window) for window in windows]
        if min(extents) < 1:
            window = "x".join(map(str, weight.shape[2:]))
            raise self.error(f"the {window} window is larger than the padded operand {x}")
        return TensorType((x.shape[0], weight.shape[0], *extents), dtype)

    def apart(self, index: int, axis: int) -> int | None:
        return 0 if (index, axis) == (0, 0) else None


class Conv2dOp(ConvolutionOp, name="conv2d", attrs=Conv2dAttrs):
    """2-d convolution: x [N,C,H,W], weight [O,C/groups,KH,KW], bias [O] -> [N,O,OH,OW].

    The bias of a bf16 or f16 convolution may be f32; it is added before the sum is rounded. An x of u8 or i8 takes an
    i8 weight and an i32 bias; the result is the exact i32 sum of products of ``x - zero_point``.
    """

    @property
    def reads_narrow_plain(self) -> bool:
        """The first layer: three channels of a picture."""
        return self.x.type.dtype not in QUANTIZED or self.attrs.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel."""
        return self.attrs.groups == self.x.shape[1] == self.weight.shape[0] and self.attrs.groups > 1

    def infer_types(self) -> tuple[TensorType, ...]:
        x, weight = self.x.type, self.weight.type
        check_channels(self, 4)
        terms = weight.size // max(1, weight.shape[0])
        return (self._window_type(sum_type(self, x, weight, self.bias, terms, self.attrs.zero_point)),)

    def evaluate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.x.type.dtype in QUANTIZED:
            return exact_sums(self, self._convolve, x, weight, bias, self.attrs.zero_point)
        return self._convolve(x, weight, bias)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        attrs = self.attrs
        top, left, bottom, right = attrs.padding
        padding = (top, left)
        if (top, left) != (bottom, right):
            x, padding = functional.pad(x, (left, right, top, bottom)), (0, 0)
        arguments = (attrs.stride, padding, attrs.dilation, attrs.groups)
        if bias is not None and bias.dtype is not x.dtype:
            return functional.conv2d(x.to(bias.dtype), weight.to(bias.dtype), bias, *arguments).to(x.dtype)
        return functional.conv2d(x, weight, bias, *arguments)


@dataclass(frozen=True)
class Conv3dAttrs(Attrs):
    """``padding`` is (front, top, left, back, bottom, right) zeros; the others are (depth, height, width)."""

    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if min(*self.stride, *self.dilation, self.groups) < 1 or min(self.padding) < 0:
            raise ValueError(f"stride, dilation and groups must be positive and padding not negative: {self}")


class Conv3dOp(ConvolutionOp, name="conv3d", attrs=Conv3dAttrs):
    """3-d convolution: x [N,C,D,H,W], weight [O,C/groups,KD,KH,KW], bias [O] -> [N,O,OD,OH,OW]."""

    on_integers = OnIntegers.NOTHING
    reads_narrow_plain = True

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self._window_type(float_type(self)),)

    def evaluate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        attrs, dtype = self.attrs, x.dtype
        front, top, left, back, bottom, right = attrs.padding
        padded = functional.pad(x, (left, right, top, bottom, front, back))
        if bias is not None and bias.dtype is not dtype:
            padded, weight = padded.to(bias.dtype), weight.to(bias.dtype)
        return functional.conv3d(padded, weight, bias, attrs.stride, 0, attrs.dilation, attrs.groups).to(dtype)


@dataclass(frozen=True)
class ConvTranspose2dAttrs(Attrs):
    """Pairs are (height, width); ``padding`` is cut off on both sides, ``output_padding`` is added at the end.

    ``zero_point`` is the integer that stands for zero in an operand of 8-bit integers.
    ``weight_bits`` says how many bits all integers of the weight fit, 7 or 8.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    zero_point: int = 0
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        check_weight_bits(self.weight_bits)
        if min(*self.stride, *self.dilation, self.groups) < 1 or min(*self.padding, *self.output_padding) < 0:
            raise ValueError(f"stride, dilation and groups must be positive and padding not negative: {self}")
        if any(self.output_padding[i] >= max(self.stride[i], self.dilation[i]) for i in range(2)):
            raise ValueError(f"output_padding must be less than the stride or the dilation: {self}")


class ConvTranspose2dOp(ConvolutionOp, name="conv_transpose2d", attrs=ConvTranspose2dAttrs):
    """Transposed 2-d convolution: x [N,C,H,W], weight [O,C/groups,KH,KW], bias [O] -> [N,O,OH,OW].

    Each input is multiplied by the weights, and the products are added up ``stride`` positions apart. The weight has
    the dimensions of `Conv2dOp`'s, not the order of PyTorch's, which is [C,O/groups,KH,KW]. An x of u8 or i8 takes an
    i8 weight and an i32 bias; the result is the exact i32 sum of products of ``x - zero_point``.
    """

    @property
    def reads_narrow_plain(self) -> bool:
        """Kernels for integers take blocks only."""
        return self.x.type.dtype not in QUANTIZED

    def infer_types(self) -> tuple[TensorType, ...]:
        x, weight, attrs = self.x.type, self.weight.type, self.attrs
        check_channels(self, 4)
        terms = weight.size // max(1, weight.shape[0])
        dtype = sum_type(self, x, weight, self.bias, terms, attrs.zero_point)
        extents = tuple(
            (x.shape[2 + i] - 1) * attrs.stride[i]
            + attrs.dilation[i] * (weight.shape[2 + i] - 1)
            + 1
            - 2 * attrs.padding[i]
            + attrs.output_padding[i]
            for i in range(2)
        )
        if min(extents) < 1:
            raise self.error(f"padding {attrs.padding} cuts off all that {x} and {weight} make")
        return (TensorType((x.shape[0], weight.shape[0], *extents), dtype),)

    def evaluate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.x.type.dtype in QUANTIZED:
            return exact_sums(self, self._spread, x, weight, bias, self.attrs.zero_point)
        return self._spread(x, weight, bias)

    def _spread(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        attrs, dtype = self.attrs, x.dtype
        if bias is not None and bias.dtype is not dtype:
            x, weight = x.to(bias.dtype), weight.to(bias.dtype)
        window = (attrs.stride, attrs.padding, attrs.output_padding, attrs.groups, attrs.dilation)
        return functional.conv_transpose2d(x, swap_channels(weight, attrs.groups), bias, *window).to(dtype)

    def macs(self) -> int:
        return self.x.type.size // self.x.shape[1] * self.weight.type.size


def check_channels(op: LayerOp, rank: int) -> None:
    """Raise IRError unless operands have ``rank`` dimensions and channels that fit the weight."""
    x, weight, groups = op.x.type, op.weight.type, op.channel_groups
    if x.rank != rank or weight.rank != rank:
        raise op.error(f"needs a {rank}-d operand and a {rank}-d weight, got {x} and {weight}")
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise op.error(f"weight {weight} does not fit {x} with groups={groups}")
    if op.bias is not None and op.bias.shape != (weight.shape[0],):
        raise op.error(f"bias {op.bias.type} must have the weight's {weight.shape[0]} output channels")


def float_type(op: LayerOp) -> DType:
    """Element type of a layer's result, which that of both operands is; IRError if they differ."""
    x = op.x.type
    if x.dtype is not op.weight.type.dtype or not fits_bias(op.bias, x):
        raise op.error(f"operands must have one element type, got {', '.join(str(v.type) for v in op.inputs)}")
    return x.dtype


def swap_channels(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[O,C/groups,...] -> [C,O/groups,...], the order of PyTorch's transposed convolutions; its own inverse."""
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(-1, weight.shape[0] // groups, *weight.shape[2:])
