"""Linear layers and batched products of activations."""

from __future__ import annotations

import math

from ....ir import is_constant
from ....ir.ops import LinearOp, MatmulOp, PackedLinearOp, PermuteOp
from ...templates.matmul.packed import PackedSpec
from ...templates.matmul.spec import ACTIVATION, MatmulSpec
from ...templates.sparse.blocks import stored_blocks, supports
from ...templates.sparse.spec import SparseLinearSpec
from ...templates.vector.dot_product import useful_bits
from ...templates.vector.operand_types import is_integer
from ...templates.vector.storage import NUMBERS
from ..group import Group
from ..kernel import (
    CompileError,
    FusedEpilogue,
    Kernel,
    KernelContext,
    anchor_type,
    buffer_size,
    fused_kernel,
    layer_kernel,
    selects,
)
from ..views import View


@selects(LinearOp)
def select_linear(group: Group, context: KernelContext) -> Kernel:
    """A product with a packed weight; leading dimensions are rows."""
    op = group.anchor_as(LinearOp)
    dtype = anchor_type(group, integers=True)
    data, weight, bias = group.operand(0), group.operand(1), group.anchor_operand(2)
    if not is_constant(weight):
        raise CompileError(f"{op.describe()}: the weight is computed at run time; run the pass 'canonicalize'")
    outputs, inputs = weight.shape
    rows = math.prod(data.shape[:-1])
    source = context.contiguous(data)
    result = View.whole(group.result)
    numbers = context.constant(weight)
    spec = MatmulSpec(
        rows,
        outputs,
        inputs,
        a_size=buffer_size(source),
        dtype=dtype,
        zero_point=op.attrs.zero_point,
        weight_bits=useful_bits(context.target, dtype, op.attrs.weight_bits, numbers),
    )
    epilogue = FusedEpilogue(group, context, result, bias=bias, kernel_shape=(rows, outputs))
    if dtype == "float32" and (blocks := stored_blocks(numbers, op.attrs.blocks)) is not None:
        sparse = SparseLinearSpec(outputs, inputs, *blocks, m=rows)
        if supports(sparse, context.target):
            return layer_kernel("sparse_linear", sparse, context, (source, numbers), epilogue)
    return layer_kernel("matmul", spec, context, (source, numbers), epilogue)


@selects(PackedLinearOp)
def select_packed_linear(group: Group, context: KernelContext) -> Kernel:
    """A product with a weight of few bits; leading dimensions are rows."""
    op = group.anchor_as(PackedLinearOp)
    data, weight, scale, bias = group.operand(0), group.operand(1), group.operand(2), group.anchor_operand(3)
    if not (is_constant(weight) and is_constant(scale)):
        raise CompileError(f"{op.describe()}: the weight and its scales must be constants")
    *leading, inputs = data.shape
    rows, outputs, source = math.prod(leading), weight.shape[0], context.contiguous(data)
    attrs, dtype = op.attrs, NUMBERS[data.type.dtype]
    spec = PackedSpec(rows, outputs, inputs, attrs.bits, attrs.group, buffer_size(source), dtype, attrs.zero_point)
    result = View.whole(group.result)
    epilogue = FusedEpilogue(group, context, result, bias=bias, kernel_shape=(rows, outputs))
    choice = context.choose("matmul_packed", spec)
    numbers = (context.constant(weight), context.constant(scale))
    packed = choice.template.pack_weight(choice.spec, context.target, choice.knobs, *numbers)
    return fused_kernel(choice, context, (source, packed), epilogue)


@selects(MatmulOp)
def select_matmul(group: Group, context: KernelContext) -> Kernel:
    """``matmul`` of two activations, read in place through any strides; rows of integers must be contiguous."""
    op = group.anchor_as(MatmulOp)
    dtype = anchor_type(group, integers=True)
    left, right = group.operand(0), group.operand(1)
    *batch, rows, columns = op.result.shape
    a, b = context.view(left), context.view(right)
    if is_integer(dtype) and a.strides[-1] != 1:
        a = context.contiguous(left)
    b_strides = b.strides[-2:] if not op.attrs.transpose_rhs else (b.strides[-1], b.strides[-2])
    result = permuted_result(group)
    spec = MatmulSpec(
        rows,
        columns,
        left.shape[-1],
        ACTIVATION,
        tuple(batch),
        a_strides=(*_batch_strides(a, batch), *a.strides[-2:]),
        rhs_strides=(*_batch_strides(b, batch), *b_strides),
        out_strides=result.strides,
        a_offset=a.offset,
        rhs_offset=b.offset,
        a_size=buffer_size(a),
        rhs_size=buffer_size(b),
        out_size=buffer_size(result),
        dtype=dtype,
        zero_point=op.attrs.lhs_zero,
        rhs_zero_point=op.attrs.rhs_zero,
    )
    return fused_kernel(context.choose("matmul", spec), context, (a, b), FusedEpilogue(group, context, result))


def permuted_result(group: Group) -> View:
    """Where a template that writes through strides puts its result.

    When the only reader is a permute that keeps the last dimension, the result is stored in the permuted order, so that
    the permute costs nothing.
    """
    value = group.result
    if len(value.users) == 1 and value.has_one_use and isinstance(value.users[0], PermuteOp):
        dims = value.users[0].attrs.dims
        if dims[-1] == len(dims) - 1:
            return View.permuted(value, dims)
    return View.whole(value)


def _batch_strides(view: View, batch: list[int]) -> tuple[int, ...]:
    """Strides of the leading dimensions of ``view`` after broadcasting them to ``batch``."""
    shape, strides = view.type.shape[:-2], view.strides[:-2]
    missing = len(batch) - len(shape)
    return (*[0] * missing, *[0 if extent == 1 else s for extent, s in zip(shape, strides, strict=True)])
