"""Fourier transforms, as products with constant matrices, and windows.

The last axis of a signal holds its real parts, or real and imaginary ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..known import dtype_of, number, refuse
from ..registry import operator, operators

Tensor = torch.Tensor

# Weights of the cosines of 0, 1, and 2 turns.
_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, -21 / 46, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}


def _window(weights: tuple[float, float, float]) -> Callable[..., Tensor]:
    def compute(size: Tensor, *, output_datatype: int = 1, periodic: int = 1) -> Tensor:
        extent = int(number(size))
        turns = 2 * math.pi * torch.arange(extent, dtype=torch.float64) / max(extent if periodic else extent - 1, 1)
        total = sum((weight * torch.cos(i * turns) for i, weight in enumerate(weights)), torch.zeros(extent))
        return total.to(dtype_of(output_datatype))

    return compute


operators(_WINDOWS, _window)


@operator("DFT")
def dft(
    x: Tensor,
    length: Tensor | None = None,
    axis: Tensor | int | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    opset: int = 20,
) -> Tensor:
    """Along an axis, which is the first of a signal, or the last one since opset 20."""
    along = (1 if opset < 20 else -2) if axis is None else int(number(axis))
    if onesided and inverse:
        refuse("the inverse of one side of a spectrum")
    x = x.movedim(along % x.ndim, -2)
    size = x.shape[-2] if length is None else int(number(length))
    x = torch.nn.functional.pad(x, (0, 0, 0, size - x.shape[-2]))
    return _transformed(x, size // 2 + 1 if onesided else size, bool(inverse)).movedim(-2, along % x.ndim)


@operator("STFT")
def stft(
    x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None, *, onesided: int = 1
) -> Tensor:
    """Frames [N, frames, bins, 2] of a signal [N, samples, 1]."""
    if x.ndim == 3 and x.shape[-1] != 1:
        refuse("a complex signal")
    if window is None and length is None:
        refuse("frames of no length")
    size = int(number(length)) if window is None else window.shape[0]
    hop = int(number(step))
    frames = x.reshape(x.shape[0], -1).unfold(1, size, hop)
    frames = frames if window is None else frames * window
    return _transformed(frames[..., None], size // 2 + 1 if onesided else size, inverse=False)


def _transformed(x: Tensor, bins: int, inverse: bool) -> Tensor:
    """[..., size, 1 or 2] -> [..., bins, 2]."""
    size = x.shape[-2]
    # The product is taken modulo the size, so that angles stay small and exact.
    turns = torch.arange(size)[:, None] * torch.arange(bins) % size
    angles = 2 * math.pi * turns.to(torch.float64) / size * (1 if inverse else -1)
    scale = 1 / size if inverse else 1.0
    cosines, sines = ((function(angles) * scale).to(x.dtype) for function in (torch.cos, torch.sin))
    real = x[..., 0]
    if x.shape[-1] == 1:
        return torch.stack([real @ cosines, real @ sines], -1)
    imaginary = x[..., 1]
    return torch.stack([real @ cosines - imaginary @ sines, real @ sines + imaginary @ cosines], -1)
