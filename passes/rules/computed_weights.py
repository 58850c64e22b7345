"""Layers whose weight is computed when the program runs, as products of matrices.

==================================  ==========================================================
linear-to-matmul                    linear(x, w, b) -> matmul(x, w^T) + b
conv-to-matmul                      conv(x, w, b) -> matmul(w, patches of x) + b, in two and three dimensions
transposed-to-conv                  conv_transpose2d(x, w) -> conv2d(x with zeros in between, w backwards)
==================================  ==========================================================
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from ...ir import Attrs, Op, Rewriter, Value
from ...ir.ops import (
    AddOp,
    ConcatOp,
    Conv2dOp,
    Conv3dOp,
    ConvTranspose2dOp,
    EmbeddingOp,
    LinearOp,
    MatmulOp,
    PadOp,
    PermuteOp,
    ReshapeOp,
    SliceOp,
)
from ..matching import replace


def linear_to_matmul(op: Op, rewriter: Rewriter) -> bool:
    """linear(x, w, b) -> matmul(x, w^T) + b."""
    if not isinstance(op, LinearOp) or not _depends_on_inputs(op.weight):
        return False
    if not rewriter.commit("linear-to-matmul", op):
        return False
    rows = op.x if op.x.type.rank > 1 else _reshape(rewriter, op.x, (1, *op.x.shape))
    product = rewriter.create(MatmulOp, (rows, op.weight), MatmulOp.attrs_type(transpose_rhs=True)).result
    product = product if rows is op.x else _reshape(rewriter, product, op.result.shape)
    replace(rewriter, op, product if op.bias is None else rewriter.create(AddOp, (product, op.bias)).result)
    return True


def conv_to_matmul(op: Op, rewriter: Rewriter) -> bool:
    """conv(x, w, b) -> matmul(w, patches) + b: a patch is what a window reads (im2col)."""
    if not isinstance(op, Conv2dOp | Conv3dOp) or not op.x.type.dtype.is_floating or not _depends_on_inputs(op.weight):
        return False
    if not rewriter.commit("conv-to-matmul", op):
        return False
    attrs, rank = op.attrs, len(op.attrs.stride)
    batch, inputs = op.x.shape[:2]
    outputs, _, *window = op.weight.shape
    positions, groups = op.result.shape[2:], attrs.groups
    padded = _pad(rewriter, op.x, attrs.padding[:rank], attrs.padding[rank:])
    parts = []
    for tap in itertools.product(*map(range, window)):
        part = padded
        for axis, (index, gap, step, count) in enumerate(
            zip(tap, attrs.dilation, attrs.stride, positions, strict=True), start=2
        ):
            cut = SliceOp.attrs_type(axis, index * gap, index * gap + (count - 1) * step + 1, step)
            part = _made(rewriter, SliceOp, part, cut)
        parts.append(_reshape(rewriter, part, (batch, inputs, 1, *positions)))
    joined = rewriter.create(ConcatOp, parts, ConcatOp.attrs_type(axis=2)).result
    terms = inputs // groups * math.prod(window)
    patches = _reshape(rewriter, joined, (batch, groups, terms, math.prod(positions)))
    filters = _reshape(rewriter, op.weight, (groups, outputs // groups, terms))
    product = rewriter.create(MatmulOp, (filters, patches)).result
    made = _reshape(rewriter, product, op.result.shape)
    if op.bias is not None:
        made = rewriter.create(AddOp, (made, _reshape(rewriter, op.bias, (outputs, *[1] * rank)))).result
    replace(rewriter, op, made)
    return True


def transposed_to_conv(op: Op, rewriter: Rewriter) -> bool:
    """conv_transpose2d(x, w) -> conv2d(x with zeros in between, w backwards)."""
    if not isinstance(op, ConvTranspose2dOp) or not _depends_on_inputs(op.weight):
        return False
    if not rewriter.commit("transposed-to-conv", op):
        return False
    attrs, window = op.attrs, op.weight.shape[2:]
    batch, inputs, height, width = op.x.shape
    (down, right), reach = attrs.stride, [d * (k - 1) for d, k in zip(attrs.dilation, window, strict=True)]
    apart = _reshape(rewriter, op.x, (batch, inputs, height, 1, width, 1))
    gaps = (0, 0, 0, down - 1, 0, right - 1)
    spread = _made(rewriter, PadOp, apart, PadOp.attrs_type((0,) * 6, gaps)) if any(gaps) else apart
    image = _reshape(rewriter, spread, (batch, inputs, height * down, width * right))
    before = [far - cut for far, cut in zip(reach, attrs.padding, strict=True)]
    after = [
        extent + far - first - have
        for extent, far, first, have in zip(op.result.shape[2:], reach, before, image.shape[2:], strict=True)
    ]
    image = _pad(rewriter, image, before, after)
    taps = math.prod(window)
    table = _reshape(rewriter, op.weight, (math.prod(op.weight.shape[:2]), taps))
    columns = _made(rewriter, PermuteOp, table, PermuteOp.attrs_type(dims=(1, 0)))
    backwards = rewriter.weight(torch.arange(taps).flip(0), "backwards")
    turned = rewriter.create(EmbeddingOp, (columns, backwards)).result
    rows = _made(rewriter, PermuteOp, turned, PermuteOp.attrs_type(dims=(1, 0)))
    filters = _reshape(rewriter, rows, op.weight.shape)
    conv = Conv2dOp.attrs_type(dilation=attrs.dilation, groups=attrs.groups)
    replace(rewriter, op, rewriter.create(Conv2dOp, (image, filters, op.bias), conv).result)
    return True


def _pad(rewriter: Rewriter, x: Value, before: Sequence[int], after: Sequence[int]) -> Value:
    """Zeros around all dimensions after the first two; negative numbers cut off."""
    for axis, (first, last) in enumerate(zip(before, after, strict=True), start=2):
        if min(first, last) < 0:
            cut = SliceOp.attrs_type(axis, max(0, -first), x.shape[axis] - max(0, -last))
            x = _made(rewriter, SliceOp, x, cut)
    amounts = [(0, 0, *(max(0, amount) for amount in side)) for side in (before, after)]
    return _made(rewriter, PadOp, x, PadOp.attrs_type(*amounts)) if any(map(any, amounts)) else x


def _reshape(rewriter: Rewriter, x: Value, shape: Sequence[int]) -> Value:
    return _made(rewriter, ReshapeOp, x, ReshapeOp.attrs_type(shape=tuple(shape)))


def _made(rewriter: Rewriter, kind: type[Op], x: Value, attrs: Attrs) -> Value:
    return rewriter.create(kind, (x,), attrs).result


def _depends_on_inputs(value: Value) -> bool:
    """Whether constant folding will leave ``value`` to be computed."""
    pending, seen = [value], set()
    while pending:
        op = (current := pending.pop()).op
        if op is None:
            return True
        if current not in seen:
            seen.add(current)
            pending.extend(op.inputs)
    return False


RULES = (linear_to_matmul, conv_to_matmul, transposed_to_conv)
