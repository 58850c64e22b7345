"""Reductions: over the planes of a blocked tensor, or over any axes of a row-major one."""

from __future__ import annotations

from ...ir.ops import MaxOp, MeanOp, MinOp, SumOp
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, anchor_type, selects
from ..templates import pooling, reduce
from ..views import View
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
    if data.type.channel_block:
        return _global_average(group, context, result)
    spec = reduce.ReduceSpec(_FUNCTIONS[type(op)], data.shape, op.attrs.axes, anchor_type(group))
    knobs = context.knobs("reduce", spec, reduce.candidates(spec, context.target))
    epilogue = FusedEpilogue(group, context, result, kernel_shape=(result.type.size,))
    return Kernel(
        template="reduce",
        spec=spec,
        knobs=knobs,
        variant=epilogue.variant,
        operands=(context.contiguous(data), *epilogue.operands),
        result=result,
        build=lambda function: reduce.build(spec, context.target, knobs, epilogue.build(), function),
    )


def _global_average(group: Group, context: KernelContext, result: View) -> Kernel:
    source = blocked_operand(group, context)
    spec = pooling.GlobalAveragePoolSpec(*source.type.shape, anchor_type(group))
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
