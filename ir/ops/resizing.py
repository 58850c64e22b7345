"""Resizing of images [N,C,H,W] by interpolation: each axis by itself, each new element from a few old ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Narrowing, OnIntegers, Storage
from ..types import DType, TensorType
from .integers import QUANTIZED

aten = torch.ops.aten
MODES = {"bilinear": aten.upsample_bilinear2d.default, "bicubic": aten.upsample_bicubic2d.default}


@dataclass(frozen=True)
class ResizeAttrs(Attrs):
    """As of ``torch.nn.functional.interpolate``.

    Attributes
    ----------
    size
        Height and width of the result.
    mode
        One of `MODES`.
    align_corners
        Whether the centres of the corner elements, instead of their outer corners, stay where they are.
    scales
        By how much height and width grow, where that decides which elements are read; 0 takes the extents' ratio.
    """

    size: tuple[int, int]
    mode: str = "bilinear"
    align_corners: bool = False
    scales: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if not all(math.isfinite(scale) and scale >= 0 for scale in self.scales):
            raise ValueError(f"scales must be positive, or 0 for the extents' ratio, got {self.scales}")


@dataclass(frozen=True, eq=False)
class AxisTaps:
    """What each new element along an axis is made of.

    Attributes
    ----------
    places
        i32 [size, taps]: the old elements.
    weights
        [size, taps]: what they are multiplied by.
    """

    places: torch.Tensor
    weights: torch.Tensor


class ResizeOp(Op, name="resize", attrs=ResizeAttrs):
    """Interpolates between the elements of images [N,C,H,W].

    Of u8 or i8 images, the result is f32: the exact sum of their numbers times weights that are rounded to multiples of
    1/256 (bicubic: 1/128), and still sum to 1. Then every partial sum is an f32 number, in whatever order.
    """

    x = Operand()
    linear = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.FOLLOWS
    leads_group = True
    default_narrowing = Narrowing.FOLLOWS
    on_integers = OnIntegers.MEANS

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if x.rank != 4 or not (x.dtype.is_floating or x.dtype in QUANTIZED):
            raise self.error(f"needs a 4-d operand of floating-point numbers, u8 or i8, got {x}")
        shape = (*x.shape[:2], *self.attrs.size)
        return (TensorType(shape, DType.F32) if x.dtype in QUANTIZED else x.with_shape(shape),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        if self.x.type.dtype in QUANTIZED:
            return self._mix(self._mix(x.double(), 0), 1).float()
        attrs = self.attrs
        return MODES[attrs.mode](x, list(attrs.size), attrs.align_corners, *(scale or None for scale in attrs.scales))

    def apart(self, index: int, axis: int) -> int | None:
        return axis if axis < 2 else None

    def macs(self) -> int:
        """Of rows, then of their columns."""
        rows, columns = (self.taps(axis).places.shape[1] for axis in range(2))
        height, width = self.attrs.size
        return math.prod(self.x.shape[:2]) * height * (rows * self.x.shape[3] + columns * width)

    def taps(self, axis: int) -> AxisTaps:
        """Along the height (0) or the width (1)."""
        attrs, extent, dtype = self.attrs, int(self.x.shape[2 + axis]), self.x.type.dtype
        how = (dtype is DType.F64, dtype in QUANTIZED)
        return _taps(attrs.mode, extent, int(attrs.size[axis]), attrs.align_corners, attrs.scales[axis], *how)

    def _mix(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Elements along one axis, from those of float64 images."""
        taps = self.taps(axis)
        picked = x.transpose(2 + axis, 3)[..., taps.places.long()]
        return (picked * taps.weights.double()).sum(-1).transpose(2 + axis, 3)


@lru_cache(maxsize=64)
def _taps(
    mode: str, extent: int, size: int, align_corners: bool, scale: float, wide: bool, rounded: bool = False
) -> AxisTaps:
    """As PyTorch computes them for numbers of this width, those included that are multiplied by 0.

    An element behind the border is the last one before it. Rounded weights are multiples of `_STEPS`.
    """
    dtype = torch.float64 if wide else torch.float32
    if align_corners:
        step = torch.tensor(extent - 1, dtype=dtype) / max(size - 1, 1)
    else:
        step = torch.tensor(1 / scale, dtype=dtype) if scale else torch.tensor(extent, dtype=dtype) / size
    centre = 0.0 if align_corners else 0.5
    source = step * (torch.arange(size, dtype=dtype) + centre) - centre
    if mode == "bilinear":
        source = source.clamp(min=0)
    first = source.floor().clamp(max=extent - 1)
    offsets, weights = _FILTERS[mode]((source - first).clamp(0, 1))
    places = (first[:, None] + torch.tensor(offsets)).clamp(0, extent - 1)
    factors = torch.stack(weights, 1)
    return AxisTaps(places.int(), _rounded(factors, _STEPS[mode]) if rounded else factors)


def _rounded(weights: torch.Tensor, steps: int) -> torch.Tensor:
    """Weights [size, taps] as multiples of 1 / steps; the largest of each row makes the sum 1."""
    counts = (weights * steps).round()
    counts.scatter_add_(1, counts.argmax(1, keepdim=True), steps - counts.sum(1, keepdim=True))
    return counts / steps


def _linear(after: torch.Tensor) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    return (0, 1), [1 - after, after]


def _cubic(after: torch.Tensor) -> tuple[tuple[int, ...], list[torch.Tensor]]:
    """Keys, "Cubic convolution interpolation for digital image processing", 1981, with PyTorch's constant."""
    a, before = -0.75, 1 - after

    def near(x: torch.Tensor) -> torch.Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: torch.Tensor) -> torch.Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return (-1, 0, 1, 2), [far(after + 1), near(after), near(before), far(before + 1)]


_FILTERS = {"bilinear": _linear, "bicubic": _cubic}  # what lies so far behind an element: which others, and weights
# Sums of 8-bit integers with two such weights each have at most 24 bits: bicubic ones reach 255 * (11 / 8)^2.
_STEPS = {"bilinear": 256, "bicubic": 128}
