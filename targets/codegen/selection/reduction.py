"""Reductions: over the planes of a blocked tensor, or over any axes of a row-major one."""

from __future__ import annotations

from ....ir.ops import MaxMagnitudeOp, MaxOp, MeanOp, MinOp, ProdOp, ReduceOp, SumOp
from ...templates import loops
from ...templates.rows import reduce
from ...templates.vector.storage import STORAGE
from ..group import Group
from ..kernel import FusedEpilogue, Kernel, KernelContext, anchor_type, fused_kernel, selects
from ..views import View
from .fallback import loop_kernel
from .pooling import global_pool

_FUNCTIONS = {MeanOp: "mean", SumOp: "sum", ProdOp: "prod", MaxOp: "max", MinOp: "min", MaxMagnitudeOp: "magnitude"}


@selects(*_FUNCTIONS)
def select_reduce(group: Group, context: KernelContext) -> Kernel:
    """``global_pool2d`` in channel blocks, else ``reduce``."""
    op = group.anchor_as(ReduceOp)
    data = group.operand(0)
    result = View.whole(group.result)
    if not isinstance(op, MeanOp) and STORAGE[data.type.dtype] in loops.INTEGERS and not data.type.channel_block:
        integers = loops.IntegerReduceSpec(_FUNCTIONS[type(op)], data.shape, op.attrs.axes, STORAGE[data.type.dtype])
        return loop_kernel("integer_reduce", integers, group, context, context.contiguous(data))
    dtype = anchor_type(group, integers=isinstance(op, MeanOp), wide=not data.type.channel_block)
    if data.type.channel_block:
        return global_pool(_FUNCTIONS[type(op)], dtype, group, context)
    spec = reduce.ReduceSpec(_FUNCTIONS[type(op)], data.shape, op.attrs.axes, dtype)
    epilogue = FusedEpilogue(group, context, result, kernel_shape=(result.type.size,))
    return fused_kernel(context.choose("reduce", spec), context, (context.contiguous(data),), epilogue)
