"""Ops without a kernel of their own, by ops that have one.

==================================  ==========================================================
softmax-last-axis                   softmax(x) along another axis -> permute(softmax(permute(x))) along the last one
softmax-in-steps                    log_softmax(x) -> d - log(sum(exp(d))), where d = x - max(x); so softmax of f64
few-outputs                         conv_transpose2d(x, w) with few channels -> crop(pixel_shuffle(conv2d(x, w')))
…                                   layers whose weight is computed from inputs: see `computed_weights`
==================================  ==========================================================
"""

from __future__ import annotations

from torch.nn import functional

from ...ir import DType, Op, Rewriter, Value
from ...ir.ops import (
    BatchNormOp,
    CastOp,
    Conv2dOp,
    ConvTranspose2dOp,
    DivOp,
    ExpOp,
    LogOp,
    MaxOp,
    PermuteOp,
    ReshapeOp,
    SliceOp,
    SoftmaxOp,
    SubOp,
    SumOp,
)
from ..matching import numbers, part_name, replace, tensor
from . import computed_weights

_CHANNEL_QUANTUM = 16  # channels that kernels compute at a time
_FEW_OUTPUTS_GAIN = 2  # by how much fewer multiply-adds pay for moving the results


def softmax_last_axis(op: Op, rewriter: Rewriter) -> bool:
    """softmax(x) along another axis -> permute(softmax(permute(x)))."""
    if not isinstance(op, SoftmaxOp) or op.attrs.log or op.attrs.axis == op.x.type.rank - 1:
        return False
    if not rewriter.commit("softmax-last-axis", op):
        return False
    last = op.x.type.rank - 1
    swapped = list(range(last + 1))
    swapped[op.attrs.axis], swapped[last] = last, op.attrs.axis
    swap = PermuteOp.attrs_type(dims=tuple(swapped))  # its own inverse
    rows = rewriter.create(PermuteOp, (op.x,), swap).result
    shares = rewriter.create(SoftmaxOp, (rows,), SoftmaxOp.attrs_type(axis=last)).result
    replace(rewriter, op, rewriter.create(PermuteOp, (shares,), swap).result)
    return True


def softmax_in_steps(op: Op, rewriter: Rewriter) -> bool:
    """log_softmax(x) -> d - log(sum(exp(d))), and softmax(x) -> exp(d) / sum(exp(d)), where d = x - max(x).

    Numbers of 16 bits are computed with in f32, and rounded at the end.
    """
    if not isinstance(op, SoftmaxOp) or not (op.attrs.log or op.x.type.dtype is DType.F64):
        return False
    if not rewriter.commit("softmax-in-steps", op):
        return False

    def cast(x: Value, dtype: DType) -> Value:
        return x if x.type.dtype is dtype else rewriter.create(CastOp, (x,), CastOp.attrs_type(dtype=dtype)).result

    axis = MaxOp.attrs_type(axes=(op.attrs.axis,), keepdim=True)
    x = cast(op.x, DType.F64 if op.x.type.dtype is DType.F64 else DType.F32)
    largest = rewriter.create(MaxOp, (x,), axis).result
    below = rewriter.create(SubOp, (x, largest)).result
    powers = rewriter.create(ExpOp, (below,)).result
    total = rewriter.create(SumOp, (powers,), axis).result
    if op.attrs.log:
        result = rewriter.create(SubOp, (below, rewriter.create(LogOp, (total,)).result)).result
    else:
        result = rewriter.create(DivOp, (powers, total)).result
    replace(rewriter, op, cast(result, op.x.type.dtype))
    return True


def few_outputs(op: Op, rewriter: Rewriter) -> bool:
    """conv_transpose2d(x, w) -> crop(pixel_shuffle(conv2d(x, w'))), where s^2 phases of few channels fill a vector.

    Before anything is cut off, all s^2 phases read the same windows: result ``q s + r`` is the sum over t of tap
    ``t s + r`` times input ``q - t``. So they are channels of one convolution, whose taps go backwards.
    """
    if not isinstance(op, ConvTranspose2dOp) or op.attrs.groups > 1 or op.attrs.dilation != (1, 1):
        return False
    if not op.x.type.dtype.is_floating:  # what makes numbers of the sums would be parted from them
        return False
    (down, right), outputs = op.attrs.stride, op.weight.shape[0]
    if down * right * _whole(outputs) <= _FEW_OUTPUTS_GAIN * _whole(down * right * outputs):
        return False
    if tensor(op.weight) is None or (op.bias is not None and tensor(op.bias) is None):
        return rewriter.refuse("few-outputs", op, "its weights are not constant, or not loaded")
    if any(isinstance(user, BatchNormOp) for user in op.result.users):
        return rewriter.refuse("few-outputs", op, "a batch normalisation behind it can be folded first")
    if not rewriter.commit("few-outputs", op):
        return False
    batch, inputs = op.x.shape[:2]
    weight = numbers(op.weight)
    grown = [max(0, more - less) for more, less in zip(op.attrs.output_padding, op.attrs.padding, strict=True)]
    taps = [-(-(op.weight.shape[2 + i] + grown[i]) // op.attrs.stride[i]) for i in range(2)]
    missing = (taps[1] * right - weight.shape[3], taps[0] * down - weight.shape[2])
    padded = functional.pad(weight, (0, missing[0], 0, missing[1]))
    phases = padded.reshape(outputs, inputs, taps[0], down, taps[1], right).permute(0, 3, 5, 1, 2, 4).flip(4, 5)
    filters = rewriter.weight(phases.reshape(-1, inputs, *taps), part_name(op.weight, "phases"))
    bias = None
    if op.bias is not None:
        bias = rewriter.weight(numbers(op.bias).repeat_interleave(down * right), part_name(op.bias, "phases"))
    around = (taps[0] - 1, taps[1] - 1)
    made = rewriter.create(Conv2dOp, (op.x, filters, bias), Conv2dOp.attrs_type(padding=around * 2)).result
    rows, columns = made.shape[2:]
    split = ReshapeOp.attrs_type(shape=(batch, outputs, down, right, rows, columns))
    order = PermuteOp.attrs_type(dims=(0, 1, 4, 2, 5, 3))
    moved = rewriter.create(PermuteOp, (rewriter.create(ReshapeOp, (made,), split).result,), order).result
    merged = ReshapeOp.attrs_type(shape=(batch, outputs, rows * down, columns * right))
    result = rewriter.create(ReshapeOp, (moved,), merged).result
    for axis, start in enumerate(op.attrs.padding, start=2):
        cut = SliceOp.attrs_type(axis=axis, start=start, stop=start + op.result.shape[axis])
        result = rewriter.create(SliceOp, (result,), cut).result
    replace(rewriter, op, result)
    return True


def _whole(channels: int) -> int:
    return -(-channels // _CHANNEL_QUANTUM) * _CHANNEL_QUANTUM


RULES = (softmax_in_steps, softmax_last_axis, few_outputs, *computed_weights.RULES)
