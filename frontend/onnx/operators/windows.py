"""Where windows lie: the paddings of convolutions and poolings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Amounts = list[tuple[int, int]]


def begins_and_ends(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
) -> Amounts:
    """Elements added before and after, for each axis."""
    rank = len(kernel)
    if not auto_pad.startswith("SAME"):
        both = list(pads) or [0] * (2 * rank)
        return list(zip(both[:rank], both[rank:], strict=True))
    amounts = []
    for extent, taps, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        total = max((-(-extent // stride) - 1) * stride + (taps - 1) * dilation + 1 - extent, 0)
        smaller, larger = total // 2, total - total // 2
        amounts.append((smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller))
    return amounts


def padded(x: torch.Tensor, amounts: Amounts, value: float = 0.0) -> torch.Tensor:
    """``x`` with elements added at the last axes, as many as there are amounts."""
    if not any(map(any, amounts)):
        return x
    return functional.pad(x, [number for pair in reversed(amounts) for number in pair], value=value)
