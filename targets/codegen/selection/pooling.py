"""Pooling over windows and over whole planes, in blocked layout."""

from __future__ import annotations

from ....ir.ops import AdaptiveAvgPool2dOp, AvgPool2dOp, MaxPool2dOp
from ...templates import loops
from ...templates.windows import pooling
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, anchor_type, fused_kernel, selects
from ..views import View
from .fallback import loop_kernel


@selects(MaxPool2dOp, AvgPool2dOp)
def select_pool2d(group: Group, context: KernelContext) -> Kernel:
    """``pool2d`` with the epilogue fused."""
    op = group.anchor
    assert isinstance(op, MaxPool2dOp | AvgPool2dOp)
    attrs, (batch, channels, height, width) = op.attrs, op.x.shape
    spec = pooling.PoolSpec(
        batch,
        channels,
        height,
        width,
        "max" if isinstance(op, MaxPool2dOp) else "avg",
        attrs.kernel,
        attrs.stride,
        (*attrs.padding, *attrs.padding),
        attrs.dilation,
        attrs.ceil,
        attrs.count_include_pad,
        anchor_type(group, integers=True),
    )
    return _pool2d(spec, group, context)


@selects(AdaptiveAvgPool2dOp)
def select_adaptive_average(group: Group, context: KernelContext) -> Kernel:
    """``pool2d`` where all windows have one size, else plain loops."""
    op = group.anchor
    assert isinstance(op, AdaptiveAvgPool2dOp)
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
    n, c, h, w = source.type.shape
    spec = pooling.GlobalPoolSpec(n, c, h, w, kind, dtype)
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
    data = group.anchor_operand(0)
    assert data is not None
    lanes = context.target.lanes()
    if data.type.channel_block != lanes or group.result.type.channel_block != lanes:
        raise CompileError(f"{group.anchor.describe()} works on channel blocks of {lanes}; run the pass 'layout'")
    return context.view(data)
