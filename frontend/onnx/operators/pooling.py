"""Poolings. Where PyTorch's own rules of padding and of incomplete windows differ, the input is padded before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from ..known import default_only, refuse
from ..registry import Computed, operator
from .windows import Amounts, begins_and_ends, padded

Tensor = torch.Tensor


@operator("MaxPool")
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    storage_order: int = 0,
    strides: Sequence[int] = (),
    outputs: int = 1,
) -> Computed:
    rank = len(kernel_shape)
    strides, dilations = (list(one) or [1] * rank for one in (strides, dilations))
    amounts = begins_and_ends(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    whole = _with_last_windows(x.shape[2:], kernel_shape, strides, dilations, amounts, ceil_mode)
    is_plain = whole == amounts and all(
        begin == end <= taps // 2 for (begin, end), taps in zip(amounts, kernel_shape, strict=True)
    )
    if not is_plain:
        if outputs > 1:
            refuse("indices of windows that are padded at one side only")
        lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, whole = padded(x, whole, lowest), [(0, 0)] * rank
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    padding = [begin for begin, _ in whole]
    if outputs == 1:
        return function(x, list(kernel_shape), strides, padding, dilations)
    default_only(storage_order=storage_order)
    largest, places = function(x, list(kernel_shape), strides, padding, dilations, return_indices=True)
    planes = torch.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * rank) * math.prod(x.shape[2:])
    return largest, places + planes


@operator("AveragePool")
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    """Unless PyTorch's own pooling does it: means over padded windows, divided by the share of what counts in them."""
    rank = len(kernel_shape)
    strides, dilations = (list(one) or [1] * rank for one in (strides, dilations))
    if any(dilation != 1 for dilation in dilations):
        refuse("dilated windows")
    amounts = begins_and_ends(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    whole = _with_last_windows(x.shape[2:], kernel_shape, strides, dilations, amounts, ceil_mode)
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    if whole == amounts and all(
        begin == end <= taps // 2 for (begin, end), taps in zip(amounts, kernel_shape, strict=True)
    ):
        padding = [begin for begin, _ in whole]
        return function(x, list(kernel_shape), strides, padding, count_include_pad=bool(count_include_pad))
    counted = torch.ones(1, 1, *x.shape[2:])
    if count_include_pad:
        counted = padded(counted, amounts, 1.0)
        rest = [(one[0] - other[0], one[1] - other[1]) for one, other in zip(whole, amounts, strict=True)]
        counted = padded(counted, rest)
    else:
        counted = padded(counted, whole)
    share = function(counted, list(kernel_shape), strides)
    return function(padded(x, whole), list(kernel_shape), strides) / share


def _with_last_windows(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    amounts: Amounts,
    ceil_mode: int,
) -> Amounts:
    """Amounts with what a last window needs that is not complete, unless it would begin in the padding at the end."""
    if not ceil_mode:
        return amounts
    result = []
    for extent, taps, stride, dilation, (begin, end) in zip(extents, kernel, strides, dilations, amounts, strict=True):
        reach = dilation * (taps - 1) + 1
        count = -(-(begin + extent + end - reach) // stride) + 1
        if (count - 1) * stride >= extent + begin:
            count -= 1
        result.append((begin, max(end, (count - 1) * stride + reach - extent - begin)))
    return result


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return functional.adaptive_avg_pool2d(x, 1)
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("LpPool")
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] = (),
    kernel_shape: Sequence[int] = (),
    p: int = 2,
    pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:
    means = average_pool(
        x.abs() ** p,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=1,
        dilations=dilations,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    if ceil_mode:
        refuse("incomplete windows")
    return (means * math.prod(kernel_shape)) ** (1 / p)


@operator("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    return (x.abs() ** p).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / p)
