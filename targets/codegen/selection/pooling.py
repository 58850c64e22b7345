"""Pooling over windows and over whole planes, in blocked layout."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from ....ir import TensorType, Value
from ....ir.ops import AdaptiveAvgPool2dOp, AvgPool2dOp, AvgPool3dOp, MaxPool2dOp, MaxPool3dOp, Pool2dOp, PoolOp
from ...templates import loops
from ...templates.base import Epilogue
from ...templates.windows import pooling
from ..group import Group
from ..kernel import (
    CompileError,
    FusedEpilogue,
    Kernel,
    KernelContext,
    anchor_type,
    chosen_kernel,
    fused_kernel,
    selects,
)
from ..views import View
from .fallback import last_kernel, loop_kernel


@selects(MaxPool2dOp, AvgPool2dOp)
def select_pool2d(group: Group, context: KernelContext) -> Kernel:
    """``pool2d`` with the epilogue fused."""
    op = group.anchor_as(Pool2dOp)
    attrs, (batch, channels, height, width) = op.attrs, op.x.shape
    mode: Literal["max", "avg"] = "max" if isinstance(op, MaxPool2dOp) else "avg"
    window = (attrs.kernel, attrs.stride, (*attrs.padding, *attrs.padding), attrs.dilation)
    ends = (attrs.ceil, attrs.count_include_pad, anchor_type(group, integers=True))
    spec = pooling.PoolSpec(batch, channels, height, width, mode, *window, *ends)
    return _pool2d(spec, group, context)


@selects(MaxPool3dOp, AvgPool3dOp)
def select_pool3d(group: Group, context: KernelContext) -> Kernel:
    """``pool2d`` of each frame, then over depth: frames are images, and after that their positions are columns.

    Maxima are made of maxima, and means of means, since a window's count is the product of those along its sides.
    """
    op = group.anchor_as(PoolOp)
    attrs, dtype, source = op.attrs, anchor_type(group), blocked_operand(group, context)
    block = source.type.channel_block
    mode: Literal["max", "avg"] = "max" if isinstance(op, MaxPool3dOp) else "avg"
    batch, channels, frames, height, width = source.type.shape
    planes = batch * -(-channels // block)
    kernel, stride, padding, dilation = attrs.kernel, attrs.stride, attrs.padding, attrs.dilation
    ends = (attrs.ceil, attrs.count_include_pad, dtype)
    sides = (*padding[1:], *padding[1:])
    window = (kernel[1:], stride[1:], sides, dilation[1:])
    flat = pooling.PoolSpec(planes * frames, block, height, width, mode, *window, *ends)
    window = ((kernel[0], 1), (stride[0], 1), (padding[0], 0, padding[0], 0), (dilation[0], 1))
    deep = pooling.PoolSpec(planes, block, frames, flat.out_h * flat.out_w, mode, *window, *ends)
    inner = Value(TensorType((flat.n, block, flat.out_h, flat.out_w), op.x.type.dtype, block))
    context.compute(_pooled(flat, source, View.whole(inner), context), inner)
    return last_kernel(group, context, lambda result: _pooled(deep, View.whole(inner), result, context))


def _pooled(spec: pooling.PoolSpec, source: View, result: View, context: KernelContext) -> Kernel:
    """``pool2d`` without an epilogue, of buffers that hold what the spec says."""
    choice = context.choose("pool2d", spec)
    build = partial(pooling.build, spec, context.target, choice.knobs, Epilogue(dtype=spec.dtype))
    return chosen_kernel(choice, operands=(source,), result=result, build=build)


@selects(AdaptiveAvgPool2dOp)
def select_adaptive_average(group: Group, context: KernelContext) -> Kernel:
    """``pool2d`` where all windows have one size, else plain loops."""
    op = group.anchor_as(AdaptiveAvgPool2dOp)
    batch, channels, height, width = op.x.shape
    rows, columns = op.attrs.size
    if height % rows or width % columns:
        anchor_type(group)
        source = blocked_operand(group, context)
        unequal = loops.AdaptivePoolSpec(batch, channels, height, width, rows, columns, source.type.channel_block)
        return loop_kernel("adaptive_pool2d", unequal, group, context, source)
    window = (height // rows, width // columns)
    spec = pooling.PoolSpec(
        batch, channels, height, width, "avg", window, window, dtype=anchor_type(group, integers=True)
    )
    return _pool2d(spec, group, context)


def _pool2d(spec: pooling.PoolSpec, group: Group, context: KernelContext) -> Kernel:
    if spec.kernel == (spec.h, spec.w) and (spec.out_h, spec.out_w) == (1, 1) and not any(spec.padding):
        return global_pool("max" if spec.mode == "max" else "mean", spec.dtype, group, context)
    epilogue = FusedEpilogue(group, context, View.whole(group.result))
    return fused_kernel(context.choose("pool2d", spec), context, (blocked_operand(group, context),), epilogue)


def global_pool(kind: str, dtype: str, group: Group, context: KernelContext) -> Kernel:
    """``global_pool2d``: a reduction of whole planes in channel blocks."""
    source = blocked_operand(group, context)
    n, c, h, *others = source.type.shape
    spec = pooling.GlobalPoolSpec(n, c, h, math.prod(others), kind, dtype)
    epilogue = FusedEpilogue(group, context, View.whole(group.result))
    return Kernel(
        "global_pool2d",
        spec,
        (source, *epilogue.operands),
        epilogue.result,
        lambda: pooling.build_global(spec, context.target, epilogue.build()),
        variant=epilogue.variant,
    )


def blocked_operand(group: Group, context: KernelContext) -> View:
    """The anchor's first operand, which must be stored in the target's channel blocks, as must be the result."""
    assert group.anchor is not None
    data = group.operand(0)
    lanes = context.target.lanes()
    if data.type.channel_block != lanes or group.result.type.channel_block != lanes:
        raise CompileError(f"{group.anchor.describe()} works on channel blocks of {lanes}; run the pass 'layout'")
    return context.view(data)
