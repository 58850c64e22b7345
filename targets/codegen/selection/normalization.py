"""Softmax and layer norm along the last axis."""

from __future__ import annotations

import math

from ....ir import DType, Value, is_constant
from ....ir.ops import LayerNormOp, SoftmaxOp
from ...templates.rows import layer_norm, softmax
from ..group import Group
from ..kernel import CompileError, FusedEpilogue, Kernel, KernelContext, Operand, anchor_type, fused_kernel, selects
from ..views import View


@selects(SoftmaxOp)
def select_softmax(group: Group, context: KernelContext) -> Kernel:
    """``softmax`` over rows."""
    op = group.anchor_as(SoftmaxOp)
    dtype = anchor_type(group)
    if op.attrs.log or op.attrs.axis != op.x.type.rank - 1:
        raise CompileError(
            f"{op.describe()}: only softmax along the last axis has a kernel; run the pass 'canonicalize'"
        )
    data = group.operand(0)
    *rows, columns = data.shape
    result = View.whole(group.result)
    spec = softmax.SoftmaxSpec(math.prod(rows), columns, data.shape, dtype)
    epilogue = FusedEpilogue(group, context, result)
    return fused_kernel(context.choose("softmax", spec), context, (context.contiguous(data),), epilogue)


@selects(LayerNormOp)
def select_layer_norm(group: Group, context: KernelContext) -> Kernel:
    """``layer_norm`` over rows; several trailing dimensions count as one."""
    op = group.anchor_as(LayerNormOp)
    if op.attrs.eps < 0:
        raise CompileError(f"{op.describe()} with epsilon {op.attrs.eps}: kernels take none below 0")
    dtype = anchor_type(group)
    data = group.operand(0)
    columns = math.prod(data.shape[-op.attrs.dims :])
    rows = data.type.size // columns
    result = View.whole(group.result)
    gamma, beta = group.anchor_operand(1), group.anchor_operand(2)
    parameters = tuple(_parameter(value, context) for value in (gamma, beta) if value is not None)
    shape = data.shape if op.attrs.dims == 1 else (rows, columns)
    affine, absent = (gamma is not None, beta is not None), op.attrs.absent
    spec = layer_norm.LayerNormSpec(rows, columns, op.attrs.eps, *affine, shape, dtype, absent)
    epilogue = FusedEpilogue(group, context, result, kernel_shape=shape)
    return fused_kernel(context.choose("layer_norm", spec), context, (context.contiguous(data), *parameters), epilogue)


def _parameter(value: Value, context: KernelContext) -> Operand:
    """Factors or summands as float32, whatever type they are kept in."""
    if is_constant(value):
        return context.constant(value).float().reshape(-1)
    if value.type.dtype is not DType.F32:
        raise CompileError(f"layer_norm with a parameter of type {value.type} that is computed; cast it to f32")
    return context.contiguous(value)
