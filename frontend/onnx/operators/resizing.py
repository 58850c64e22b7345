"""Resizing. Every axis by itself: elements are repeated, or looked up, or multiplied by a matrix of their weights.

Where PyTorch resizes in the same way, its own operator is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..known import numbers, refuse
from ..registry import operator

Tensor = torch.Tensor
_HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


@dataclass(frozen=True)
class _Filter:
    """How numbers between elements are found; fields are named as ONNX's attributes."""

    mode: str
    coordinates: str
    nearest_mode: str = "floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


@operator("Upsample")
def upsample(x: Tensor, scales: Tensor | Sequence[float] | None = None, *, mode: str = "nearest") -> Tensor:
    factors = numbers(scales)
    sizes = [math.floor(extent * factor) for extent, factor in zip(x.shape, factors, strict=True)]
    return _resized(x, sizes, factors, _Filter(mode, "asymmetric"))


@operator("Resize")
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] = (),
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    opset: int = 11,
) -> Tensor:
    """In opset 10 the second input is the scales, and coordinates are as in `upsample`."""
    if opset < 11:
        return upsample(x, roi, mode=mode)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        refuse("coordinates of a region (tf_crop_and_resize)")
    chosen = [axis % x.ndim for axis in axes] or list(range(x.ndim))
    factors, extents = [1.0] * x.ndim, list(x.shape)
    given = dict(zip(chosen, numbers(sizes), strict=True)) if sizes is not None and sizes.numel() else {}
    ratios = {axis: size / x.shape[axis] for axis, size in given.items()}
    if given and keep_aspect_ratio_policy != "stretch":
        ratio = (min if keep_aspect_ratio_policy == "not_larger" else max)(ratios.values())
        ratios = dict.fromkeys(given, ratio)
        given = {axis: math.floor(x.shape[axis] * ratio + 0.5) for axis in given}
    if not given:
        ratios = dict(zip(chosen, numbers(scales), strict=True))
        given = {axis: math.floor(x.shape[axis] * ratio) for axis, ratio in ratios.items()}
    for axis in given:
        factors[axis], extents[axis] = ratios[axis], given[axis]
    return _resized(
        x,
        extents,
        factors,
        _Filter(
            mode,
            coordinate_transformation_mode,
            nearest_mode,
            cubic_coeff_a,
            bool(exclude_outside or antialias),
            bool(antialias),
        ),
    )


def _resized(x: Tensor, extents: Sequence[int], factors: Sequence[float], filter: _Filter) -> Tensor:
    if _is_bilinear(x, extents, factors, filter):
        return functional.interpolate(
            x, list(extents[2:]), mode="bilinear", align_corners=filter.coordinates == "align_corners"
        )
    for axis, (extent, factor) in enumerate(zip(extents, factors, strict=True)):
        if extent == x.shape[axis] and factor == 1:
            continue
        places = _places(x.shape[axis], extent, factor, filter)
        if filter.mode == "nearest":
            x = _picked(x, axis, _nearest(places, filter.nearest_mode).clamp(0, x.shape[axis] - 1).to(torch.int64))
        else:
            matrix = _matrix(places, x.shape[axis], factor, filter).to(x.dtype)
            x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis) if axis < x.ndim - 2 else _times(x, matrix, axis)
    return x


def _is_bilinear(x: Tensor, extents: Sequence[int], factors: Sequence[float], filter: _Filter) -> bool:
    if x.ndim != 4 or filter.mode != "linear" or filter.antialias or tuple(extents[:2]) != tuple(x.shape[:2]):
        return False
    if filter.coordinates == "align_corners":
        return True
    is_exact = all(extent == own * factor for extent, own, factor in zip(extents, x.shape, factors, strict=True))
    return is_exact and filter.coordinates in _HALF_PIXEL and min(extents[2:]) > 1


def _places(extent: int, size: int, factor: float, filter: _Filter) -> Tensor:
    """Where each of ``size`` new elements lies among the old ones; in float32, as other runtimes round."""
    new = torch.arange(size, dtype=torch.float32)
    if filter.coordinates == "align_corners":
        return new * (extent - 1) / max(size - 1, 1)
    if filter.coordinates == "asymmetric":
        return new / factor
    if filter.coordinates == "pytorch_half_pixel" and size == 1:
        return torch.zeros(1)
    if filter.coordinates not in (*_HALF_PIXEL, "half_pixel_symmetric"):
        refuse(f"coordinates {filter.coordinates!r}")
    centred = (new + 0.5) / factor - 0.5
    if filter.coordinates in _HALF_PIXEL:
        return centred
    return extent / 2 * (1 - size / (extent * factor)) + centred


def _nearest(places: Tensor, mode: str) -> Tensor:
    rounded = {
        "floor": places.floor(),
        "ceil": places.ceil(),
        "round_prefer_floor": (places - 0.5).ceil(),
        "round_prefer_ceil": (places + 0.5).floor(),
    }
    return rounded[mode] if mode in rounded else refuse(f"rounding {mode!r}")


def _picked(x: Tensor, axis: int, rows: Tensor) -> Tensor:
    """Elements along one axis; those that are all repeated equally often are broadcast."""
    times = len(rows) // x.shape[axis]
    if times and torch.equal(rows, torch.arange(x.shape[axis]).repeat_interleave(times)):
        spread = x.unsqueeze(axis + 1).expand(*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
        return spread.reshape(*x.shape[:axis], len(rows), *x.shape[axis + 1 :])
    return x.index_select(axis, rows)


def _matrix(places: Tensor, extent: int, factor: float, filter: _Filter) -> Tensor:
    """[new elements, extent]: the weights of the elements around each place."""
    if filter.mode not in ("linear", "cubic"):
        refuse(f"mode {filter.mode!r}")
    stretch = min(factor, 1.0) if filter.antialias else 1.0
    radius = math.ceil((1 if filter.mode == "linear" else 2) / stretch)
    places = places.to(torch.float64)
    taps = places.floor()[:, None] + torch.arange(1 - radius, radius + 1)
    distance = ((taps - places[:, None]) * stretch).abs()
    weights = (1 - distance).clamp(min=0) if filter.mode == "linear" else _cubic(distance, filter.cubic_coeff_a)
    if filter.exclude_outside:
        weights = weights * ((taps >= 0) & (taps < extent))
    weights = weights / weights.sum(1, keepdim=True)
    rows = taps.clamp(0, extent - 1).to(torch.int64)
    return torch.zeros(len(places), extent, dtype=torch.float64).scatter_add(1, rows, weights)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys 1981, "Cubic convolution interpolation for digital image processing"."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _times(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    return x @ matrix.T if axis == x.ndim - 1 else matrix @ x
