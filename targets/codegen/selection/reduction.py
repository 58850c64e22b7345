"""Reductions: over the planes of a blocked tensor, or over any axes of a row-major one."""

from __future__ import annotations

from ....ir.ops import MaxOp, MeanOp, MinOp, SumOp
from ...templates import loops
from ...templates.rows import reduce
from ...templates.windows import pooling
from ..emit import STORAGE
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, anchor_type, fused_kernel, selects
from ..views import View
from .fallback import loop_kernel
from .pooling import blocked_operand

_FUNCTIONS = {MeanOp: "mean", SumOp: "sum", MaxOp: "max", MinOp: "min"}


@selects(MeanOp, SumOp, MaxOp, MinOp)
def select_reduce(group: Group, context: KernelContext) -> Kernel:
    """``global_average_pool2d`` in channel blocks, else ``reduce``."""
    op = group.anchor
    assert isinstance(op, MeanOp | SumOp | MaxOp | MinOp)
    data = group.anchor_operand(0)
    assert data is not None
    result = View.whole(group.result)
    if not isinstance(op, MeanOp) and STORAGE[data.type.dtype] in loops.INTEGERS and not data.type.channel_block:
        integers = loops.IntegerReduceSpec(_FUNCTIONS[type(op)], data.shape, op.attrs.axes, STORAGE[data.type.dtype])
        return loop_kernel("integer_reduce", integers, group, context, context.contiguous(data))
    dtype = anchor_type(group, integers=isinstance(op, MeanOp))
    if data.type.channel_block:
        return _global_average(group, context, result)
    spec = reduce.ReduceSpec(_FUNCTIONS[type(op)], data.shape, op.attrs.axes, dtype)
    epilogue = FusedEpilogue(group, context, result, kernel_shape=(result.type.size,))
    return fused_kernel(context.choose("reduce", spec), context, (context.contiguous(data),), epilogue)


def _global_average(group: Group, context: KernelContext, result: View) -> Kernel:
    source = blocked_operand(group, context)
    batch, channels, height, width = source.type.shape
    spec = pooling.GlobalAveragePoolSpec(batch, channels, height, width, anchor_type(group, integers=True))
    epilogue = FusedEpilogue(group, context, result)
    return Kernel(
        template="global_average_pool2d",
        spec=spec,
        knobs=None,
        variant=epilogue.variant,
        operands=(source, *epilogue.operands),
        result=result,
        build=lambda function: pooling.build_global_average(spec, context.target, epilogue.build(), function),
    )
