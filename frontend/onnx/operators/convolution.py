"""Convolutions, of any number of dimensions that PyTorch has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional

from ..registry import operator
from .windows import begins_and_ends, padded

Tensor = torch.Tensor


@operator("Conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    kernel = weight.shape[2:]
    strides, dilations = (list(one) or [1] * len(kernel) for one in (strides, dilations))
    amounts = begins_and_ends(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    if any(begin != end for begin, end in amounts):
        x, amounts = padded(x, amounts), [(0, 0)] * len(kernel)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    return function(x, weight, bias, strides, [begin for begin, _ in amounts], dilations, group)


@operator("ConvTranspose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] = (),
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """What is cut off at the ends may differ from that at the beginnings: then it is cut off the whole result."""
    kernel = weight.shape[2:]
    strides, dilations = (list(one) or [1] * len(kernel) for one in (strides, dilations))
    added = list(output_padding) or [0] * len(kernel)
    whole = [
        stride * (extent - 1) + dilation * (taps - 1) + 1 + more
        for extent, taps, stride, dilation, more in zip(x.shape[2:], kernel, strides, dilations, added, strict=True)
    ]
    if auto_pad.startswith("SAME") and not output_shape:
        output_shape = [extent * stride for extent, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape:
        sizes = list(output_shape)[-len(kernel) :]
        cuts = [max(total - size, 0) for total, size in zip(whole, sizes, strict=True)]
        # Half of an odd amount is rounded up at the end, or at the beginning for SAME_LOWER and explicit shapes.
        smaller = [cut // 2 for cut in cuts]
        larger = [cut - half for cut, half in zip(cuts, smaller, strict=True)]
        first, last = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
        amounts = list(zip(first, last, strict=True))
        added = [more + max(size - total, 0) for more, size, total in zip(added, sizes, whole, strict=True)]
    else:
        amounts = begins_and_ends(x.shape[2:], kernel, strides, dilations, pads, "NOTSET")
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[len(kernel) - 1]
    if all(begin == end for begin, end in amounts):
        padding = [begin for begin, _ in amounts]
        return function(x, weight, bias, strides, padding, added, group, dilations)
    result = function(x, weight, bias, strides, [0] * len(kernel), added, group, dilations)
    for axis, (begin, end) in zip(itertools.count(2), amounts):
        result = result.narrow(axis, begin, result.shape[axis] - begin - end)
    return result
