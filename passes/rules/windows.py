"""Convolution and pooling windows: padding is an attribute, adaptive and global pooling are simpler ops.

==================================  ==========================================================
pad-into-conv                       conv2d(pad(x)) -> conv2d(x) with larger padding, for zeros around height and width
pad-into-pool                       the same for pooling: zeros that the average counts; -inf, or zeros beside numbers
                                    that are not negative, for the maximum
adaptive-pool                       adaptive_avg_pool2d -> mean over the plane (size 1), avg_pool2d (size divides the
                                    plane) or nothing (size of the plane)
global-pool                         avg_pool2d over the whole plane -> mean
==================================  ==========================================================
"""

from __future__ import annotations

import math
from dataclasses import replace

from ...ir import Op, Rewriter, Value
from ...ir.ops import (
    AdaptiveAvgPool2dOp,
    AvgPool2dOp,
    ClampOp,
    Conv2dOp,
    HardSigmoidOp,
    MaxPool2dOp,
    MeanOp,
    PadOp,
    ReluOp,
    SigmoidOp,
)
from ..matching import become, rewrite

_PLANE = MeanOp.attrs_type(axes=(2, 3), keepdim=True)


def pad_into_conv(op: Op, rewriter: Rewriter) -> bool:
    """conv2d(pad(x)) -> conv2d(x)."""
    if not isinstance(op, Conv2dOp) or not isinstance(op.x.op, PadOp):
        return False
    pad = op.x.op
    if not _is_spatial(pad) or pad.attrs.value != op.attrs.zero_point:
        return rewriter.refuse("pad-into-conv", op, "the padding is not zeros around height and width")
    top, left, bottom, right = op.attrs.padding
    (above, before), (below, behind) = pad.attrs.before[2:], pad.attrs.after[2:]
    attrs = replace(op.attrs, padding=(top + above, left + before, bottom + below, right + behind))
    return become("pad-into-conv", op, rewriter, Conv2dOp, (pad.x, op.weight, op.bias), attrs)


def pad_into_pool(op: Op, rewriter: Rewriter) -> bool:
    """max_pool2d(pad(x)), avg_pool2d(pad(x)) -> the pooling alone."""
    if not isinstance(op, MaxPool2dOp | AvgPool2dOp) or not isinstance(op.x.op, PadOp):
        return False
    pad, attrs = op.x.op, op.attrs
    padding = tuple(extent + more for extent, more in zip(attrs.padding, pad.attrs.before[2:], strict=False))
    reason = _pool_refusal(op, pad, padding)
    if reason:
        return rewriter.refuse("pad-into-pool", op, reason)
    merged = type(attrs)(kernel=attrs.kernel, stride=attrs.stride, padding=padding, dilation=attrs.dilation)
    return become("pad-into-pool", op, rewriter, type(op), (pad.x,), merged)


def adaptive_pool(op: Op, rewriter: Rewriter) -> bool:
    """adaptive_avg_pool2d -> mean, avg_pool2d or nothing."""
    if not isinstance(op, AdaptiveAvgPool2dOp):
        return False
    plane, size = op.x.shape[2:], op.attrs.size
    if any(extent % parts for extent, parts in zip(plane, size, strict=True)):
        return rewriter.refuse("adaptive-pool", op, f"a plane of {plane} does not divide into {size} equal windows")
    if plane == size and op.result.type.dtype is not op.x.type.dtype:
        return rewriter.refuse("adaptive-pool", op, "means of integers are f32")
    if plane == size:
        return rewrite("adaptive-pool", op, rewriter, lambda: op.x)
    if size == (1, 1):
        return become("adaptive-pool", op, rewriter, MeanOp, (op.x,), _PLANE)
    window = (plane[0] // size[0], plane[1] // size[1])
    attrs = AvgPool2dOp.attrs_type(kernel=window, stride=window)
    return become("adaptive-pool", op, rewriter, AvgPool2dOp, (op.x,), attrs)


def global_pool(op: Op, rewriter: Rewriter) -> bool:
    """avg_pool2d over the whole plane -> mean."""
    if not isinstance(op, AvgPool2dOp) or op.attrs.kernel != op.x.shape[2:] or op.attrs.padding != (0, 0):
        return False
    if op.result.shape[2:] != (1, 1):
        return False
    return become("global-pool", op, rewriter, MeanOp, (op.x,), _PLANE)


def _is_spatial(pad: PadOp) -> bool:
    """Whether only height and width of a 4-d tensor are padded."""
    return pad.x.type.rank == 4 and not any((*pad.attrs.before[:2], *pad.attrs.after[:2]))


def _pool_refusal(op: MaxPool2dOp | AvgPool2dOp, pad: PadOp, padding: tuple[int, ...]) -> str:
    """Why the padding cannot move into the pooling; empty if it can."""
    attrs = op.attrs
    if not _is_spatial(pad) or pad.attrs.before != pad.attrs.after:
        return "the padding is not the same on both sides of height and width"
    if attrs.ceil or attrs.dilation != (1, 1):
        return "ceil mode and dilation change which windows there are"
    if any(2 * extent > kernel for extent, kernel in zip(padding, attrs.kernel, strict=True)):
        return "it would be more than half a window"
    if isinstance(op, AvgPool2dOp):
        counted = attrs.count_include_pad or attrs.padding == (0, 0)
        return "" if pad.attrs.value == 0 and counted else "the average does not count padded zeros"
    if pad.attrs.value == -math.inf or (pad.attrs.value == 0 and _is_non_negative(pad.x)):
        return ""
    return f"padding with {pad.attrs.value:g} can be the maximum of a window"


def _is_non_negative(value: Value) -> bool:
    op = value.op
    return isinstance(op, ReluOp | SigmoidOp | HardSigmoidOp) or (isinstance(op, ClampOp) and op.attrs.min >= 0)


RULES = (pad_into_conv, pad_into_pool, adaptive_pool, global_pool)
