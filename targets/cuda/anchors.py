"""Which of our kernels computes a convolution, linear layer, matrix product or attention in half precision.

In other precisions they are Relax ops, which TVM schedules without tensor cores.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from tvm import relax

from ...ir import DType, Value, is_constant
from ...ir.ops import AttentionOp, Conv2dOp, LinearOp, MatmulOp
from ..codegen.group import Group
from ..codegen.kernel import constant_tensor
from . import templates
from .epilogue import CudaEpilogue, make_epilogue, scaled
from .lowering import Lowering, StoredTensor, computes
from .relax_ops import CHANNELS_LAST, ROW_MAJOR, scalar
from .templates import Extents, Product

R = relax.op


# Convolution -------------------------------------------------------------------------------------------------------


@computes(Conv2dOp)
def conv2d(group: Group, lowering: Lowering) -> StoredTensor | None:
    """On tensor cores; depthwise and grouped ones without. The result has its channels last."""
    op = group.anchor_as(Conv2dOp)
    x, weight, bias = group.operand(0), group.operand(1), group.anchor_operand(2)
    if op.x.type.dtype is not DType.F16 or not is_constant(weight):
        return _float_conv2d(group, lowering)
    epilogue = make_epilogue(group, 1, bias=bias)
    if epilogue is None:
        return None if group.op is not op else _float_conv2d(group, lowering)
    batch, n, height, width = op.result.shape
    image = lowering.channels_last(x)
    taps = constant_tensor(weight, lowering.graph.weights)  # [n, depth, kernel height, kernel width]
    if op.is_depthwise:
        kernel = templates.depthwise(batch, _window(op, op.x.shape[1]), epilogue)
        form, packed = "depthwise", taps[:, 0].permute(1, 2, 0)
    elif op.attrs.groups > 1:
        kernel = templates.grouped(batch, n, op.attrs.groups, _window(op, op.x.shape[1]), epilogue)
        form, packed = "grouped", taps.permute(0, 2, 3, 1)
    else:
        missing = -op.x.shape[1] % templates.CHUNK
        if missing:
            image = lowering.emit(R.nn.pad(image, [0] * 7 + [missing]))
        kernel = templates.conv2d(lowering.target, batch, n, _window(op, op.x.shape[1] + missing), epilogue)
        form, packed = "channels last", functional.pad(taps.permute(0, 2, 3, 1), (0, missing))
    filters = lowering.constant(weight, form, packed)
    return lowering.call(kernel, [image, filters], epilogue, (batch, height, width, n), CHANNELS_LAST)


def _float_conv2d(group: Group, lowering: Lowering) -> StoredTensor | None:
    """By Relax, row-major; None for a group, whose members come one by one."""
    op = group.anchor_as(Conv2dOp)
    if group.op is not op:
        return None
    attrs = op.attrs
    x, weight = lowering.plain(op.x), lowering.plain(op.weight)
    result = lowering.emit(
        R.nn.conv2d(x, weight, attrs.stride, attrs.padding, attrs.dilation, attrs.groups, out_dtype="float32")
    )
    if op.bias is not None:
        bias = R.reshape(R.astype(lowering.plain(op.bias), "float32"), (1, op.result.shape[1], 1, 1))
        result = lowering.emit(R.add(result, bias))
    return StoredTensor(_stored_as(result, op.result, lowering))


def _window(op: Conv2dOp, channels: int) -> Extents:
    attrs = op.attrs
    return Extents(
        *op.x.shape[2:],
        channels,
        *op.result.shape[2:],
        *op.weight.shape[2:],
        *attrs.stride,
        *attrs.padding[:2],
        *attrs.dilation,
    )


# Matrix products ---------------------------------------------------------------------------------------------------


@computes(LinearOp)
def linear(group: Group, lowering: Lowering) -> StoredTensor | None:
    """The weight is [n, k], as kernels read it."""
    op = group.anchor_as(LinearOp)
    x, weight, bias = group.operand(0), group.operand(1), group.anchor_operand(2)
    epilogue = make_epilogue(group, -1, bias=bias) if op.x.type.dtype is DType.F16 else None
    if epilogue is not None:
        n, k = weight.shape
        product = Product(1, math.prod(x.shape[:-1]), n, k, True, 0, 0)
        kernel = templates.matmul(lowering.target, product, epilogue)
        operands = [lowering.plain(x), lowering.flat(weight) if is_constant(weight) else lowering.plain(weight)]
        return lowering.call(kernel, operands, epilogue, group.result.shape, ROW_MAJOR)
    if group.op is not op:
        return None
    transposed = lowering.emit(R.permute_dims(lowering.plain(weight), (1, 0)))
    result = lowering.emit(R.matmul(lowering.plain(x), transposed, out_dtype="float32"))
    if bias is not None:
        result = lowering.emit(R.add(result, R.astype(lowering.plain(bias), "float32")))
    return StoredTensor(_stored_as(result, op.result, lowering))


@computes(MatmulOp)
def matmul(group: Group, lowering: Lowering) -> StoredTensor | None:
    """Batches of products; a side that is the same for all of a batch is read once for each."""
    op = group.anchor_as(MatmulOp)
    lhs, rhs = group.operand(0), group.operand(1)
    epilogue = make_epilogue(group, -1) if op.lhs.type.dtype is DType.F16 else None
    if epilogue is None and group.op is not op:
        return None
    a, b = lowering.plain(lhs), lowering.plain(rhs)
    if epilogue is None:
        return StoredTensor(_stored_as(_float_matmul(lowering, a, b, op.attrs.transpose_rhs), op.result, lowering))
    return _matmul(lowering, a, b, op.attrs.transpose_rhs, epilogue, group.result.shape)


def _matmul(
    lowering: Lowering, a: relax.Expr, b: relax.Expr, b_rows: bool, epilogue: CudaEpilogue, shape: tuple[int, ...]
) -> StoredTensor:
    """``a [..., m, k]`` times ``b [..., k, n]``, or ``[..., n, k]`` with ``b_rows``, on tensor cores."""
    sides, steps = [], []
    for side in (a, b):
        extents = tuple(int(extent) for extent in side.ty.shape)
        shared = math.prod(extents[:-2]) == 1
        if not shared and extents[:-2] != shape[:-2]:
            extents = (*shape[:-2], *extents[-2:])
            side = lowering.emit(R.broadcast_to(side, extents))
        sides.append(side)
        steps.append(0 if shared else extents[-2] * extents[-1])
    batch, m, n, k = math.prod(shape[:-2]), shape[-2], shape[-1], int(sides[0].ty.shape[-1])
    product = Product(batch, m, n, k, b_rows, *steps)
    return lowering.call(templates.matmul(lowering.target, product, epilogue), sides, epilogue, shape, ROW_MAJOR)


def _float_matmul(lowering: Lowering, a: relax.Expr, b: relax.Expr, b_rows: bool) -> relax.Expr:
    if b_rows:
        rank = len(b.ty.shape)
        b = lowering.emit(R.permute_dims(b, (*range(rank - 2), rank - 1, rank - 2)))
    return lowering.emit(R.matmul(a, b, out_dtype="float32"))


# Attention ---------------------------------------------------------------------------------------------------------


@computes(AttentionOp)
def attention(group: Group, lowering: Lowering) -> StoredTensor | None:
    """Two products with a softmax between them, which is computed in float32 whatever the operands are."""
    op = group.anchor_as(AttentionOp)
    if group.op is not op:
        return None
    query, key, value = (lowering.plain(operand) for operand in (op.query, op.key, op.value))
    shape = (*op.query.shape[:-1], op.key.shape[-2])
    half = op.query.type.dtype is DType.F16
    if half:
        scores = _matmul(lowering, query, key, True, scaled("float32", op.scale), shape).variable
    else:
        scores = _float_matmul(lowering, query, key, True)
        scores = lowering.emit(R.multiply(scores, scalar(op.scale, DType.F32)))
    weights = lowering.emit(R.nn.softmax(_masked(op, scores, lowering), -1))
    if not half:
        return StoredTensor(_stored_as(_float_matmul(lowering, weights, value, False), op.result, lowering))
    weights = lowering.emit(R.astype(weights, "float16"))
    return _matmul(lowering, weights, value, False, scaled("float16", 1.0), op.result.shape)


def _masked(op: AttentionOp, scores: relax.Expr, lowering: Lowering) -> relax.Expr:
    """Scores of what may not be attended to are minus infinity."""
    never = scalar(-math.inf, DType.F32)
    if op.mask is not None and op.mask.type.dtype is DType.BOOL:
        scores = lowering.emit(R.where(lowering.plain(op.mask), scores, never))
    elif op.mask is not None:
        scores = lowering.emit(R.add(scores, R.astype(lowering.plain(op.mask), "float32")))
    if op.attrs.causal:
        rows, columns = op.query.shape[-2], op.key.shape[-2]
        seen = torch.ones((rows, columns), dtype=torch.bool).tril()
        flags = lowering.constant("causal", f"{rows} {columns}", seen)
        seen_by = R.reshape(R.astype(flags, "bool"), (rows, columns))
        scores = lowering.emit(R.where(seen_by, scores, never))
    return scores


def _stored_as(result: relax.Expr, value: Value, lowering: Lowering) -> relax.Expr:
    """A float32 variable in the element type of ``value``."""
    if value.type.dtype is DType.F32:
        return result
    return lowering.emit(R.astype(result, str(value.type.dtype.torch).removeprefix("torch.")))
