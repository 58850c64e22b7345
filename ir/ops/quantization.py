"""Between floating-point numbers and the 8-bit integers that stand for them: ``number = scale * (q - zero_point)``.

Every step is one operation on float32 numbers, rounded once, so that the interpreter and compiled code agree bit for
bit; see "Integers" in docs/kernels.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Storage
from ..types import DType, TensorType, broadcast_shapes
from .activation import UnaryOp
from .integers import QUANTIZED, integer_range

_SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class QuantizeAttrs(Attrs):
    """``scale`` is the step between neighbouring integers, ``zero_point`` the integer that stands for 0."""

    scale: float
    zero_point: int = 0
    dtype: DType = DType.U8

    def __post_init__(self) -> None:
        if self.dtype not in QUANTIZED:
            raise ValueError(f"dtype must be u8 or i8, not {self.dtype.value}")
        if not (_SMALLEST <= self.scale <= 1 / _SMALLEST):
            raise ValueError(f"scale must be positive and normal in f32, and its reciprocal too, not {self.scale}")
        low, high = integer_range(self.dtype)
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero_point must be a number of type {self.dtype.value}, not {self.zero_point}")

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest result, less the zero point."""
        low, high = integer_range(self.dtype)
        return low - self.zero_point, high - self.zero_point


class QuantizeOp(UnaryOp, name="quantize", attrs=QuantizeAttrs):
    """``clamp(round(x * (1 / scale)) + zero_point)`` of an f32 tensor as u8 or i8.

    The reciprocal is an f32 number, the product is rounded to f32, ties of the second rounding go to the even integer.
    Infinities become the outermost integers, NaN the smallest.
    """

    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.x.type.dtype is not DType.F32:
            raise self.error(f"needs an f32 operand, got {self.x.type}; insert a cast or a dequantize")
        return (self.x.type.with_dtype(self.attrs.dtype),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.attrs.bounds
        steps = x * torch.tensor(1 / self.attrs.scale, dtype=torch.float32)
        clamped = torch.clamp(torch.nan_to_num(steps, nan=low, posinf=high, neginf=low), low, high)
        return (torch.round(clamped).to(torch.int32) + self.attrs.zero_point).to(self.attrs.dtype.torch)


class QuantizeByOp(Op, name="quantize_by"):
    """``clamp(round(x * (1 / scale)))`` of an f32 tensor as i8; the scale is f32, is computed, and broadcasts to x.

    The reciprocal and the product are rounded to f32, ties of the last rounding go to the even integer. NaN becomes the
    smallest integer.
    """

    x = Operand()
    scale = Operand()
    elementwise = True
    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        x, scale = self.x.type, self.scale.type
        if x.dtype is not DType.F32 or scale.dtype is not DType.F32:
            raise self.error(f"needs f32 operands, got {x} and {scale}")
        if broadcast_shapes(x.shape, scale.shape) != x.shape:
            raise self.error(f"scale {scale} does not broadcast to {x}")
        return (x.with_dtype(DType.I8),)

    def evaluate(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        low, high = integer_range(DType.I8)
        steps = torch.nan_to_num(x * (1 / scale), nan=low, posinf=high, neginf=low)
        return torch.round(torch.clamp(steps, low, high)).to(torch.int8)


@dataclass(frozen=True)
class DequantizeAttrs(Attrs):
    """``zero_point`` is the integer that stands for 0."""

    zero_point: int = 0


class DequantizeOp(Op, name="dequantize", attrs=DequantizeAttrs):
    """``f32(x - zero_point) * scale`` of a u8, i8 or i32 tensor; scale is f32 and broadcasts to x's shape.

    The difference is an i32 number, rounded to f32 before it is multiplied. The zero point of i32 sums is 0.
    """

    x = Operand()
    scale = Operand()
    elementwise = True
    always_finite = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        x, scale = self.x.type, self.scale.type
        if x.dtype not in (*QUANTIZED, DType.I32):
            raise self.error(f"needs a u8, i8 or i32 operand, got {x}")
        if scale.dtype is not DType.F32:
            raise self.error(f"the scale must be f32, got {scale}")
        if broadcast_shapes(x.shape, scale.shape) != x.shape:
            raise self.error(f"scale {scale} does not broadcast to {x}; one number per channel of it is [C,1,1]")
        low, high = (0, 0) if x.dtype is DType.I32 else integer_range(x.dtype)
        if not low <= self.attrs.zero_point <= high:
            raise self.error(f"zero_point {self.attrs.zero_point} does not fit {x}; it must lie in {low} to {high}")
        return (x.with_dtype(DType.F32),)

    def evaluate(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.int32) - self.attrs.zero_point).to(torch.float32) * scale


@dataclass(frozen=True)
class ObserveAttrs(Attrs):
    """``low`` and ``high`` are the range of the numbers, 0 and 0 as long as it is not known.

    ``weight_bits`` are those of the weights that layers multiply the integers with.
    """

    dtype: DType = DType.U8
    low: float = 0.0
    high: float = 0.0
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.dtype not in QUANTIZED:
            raise ValueError(f"dtype must be u8 or i8, not {self.dtype.value}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low and high must be finite and in order, not {self.low} and {self.high}")
        if not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits must be 2 to 8, not {self.weight_bits}")

    @property
    def is_calibrated(self) -> bool:
        """Whether the range is known."""
        return self.low < self.high


class ObserveOp(UnaryOp, name="observe", attrs=ObserveAttrs):
    """x itself: a note that it is to be stored as 8-bit integers, and the range to be covered then.

    The passes ``quantize-annotate``, ``quantize-calibrate`` and ``quantize-realize`` insert, fill in and replace it.
    """

    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.x.type.dtype is not DType.F32:
            raise self.error(f"needs an f32 operand, got {self.x.type}")
        return super().infer_types()

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return x
