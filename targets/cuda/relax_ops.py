"""Ops without a template of ours as Relax ops, which TVM turns into loops and schedules by its default GPU rules.

`RELAX` says for each op how; a function takes the op, its operands as Relax expressions, and how their dimensions are
stored. Reductions of half-precision numbers are computed in float32, as the reference does it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional
from tvm import relax

from ...ir import DType, Op
from ...ir import ops as ir_ops
from ...ir.ops.pooling import Pool2dOp
from ...ir.ops.reduction import ReduceOp
from ...ir.ops.resizing import ResizeOp

R = relax.op


@dataclass(frozen=True)
class Axes:
    """Where the dimensions of the IR's tensors lie: in order, or with the channels of an image last."""

    channels_last: bool = False

    def __call__(self, axis: int) -> int:
        """The stored dimension that dimension ``axis`` of a 4-d tensor is."""
        return (0, 3, 1, 2)[axis] if self.channels_last else axis

    @property
    def layout(self) -> str:
        """The name that Relax has for the storage of an image."""
        return "NHWC" if self.channels_last else "NCHW"

    def order(self, values: Sequence[Item]) -> list[Item]:
        """One value for each dimension, in stored order."""
        return [values[axis] for axis in (0, 2, 3, 1)] if self.channels_last else list(values)


ROW_MAJOR, CHANNELS_LAST = Axes(), Axes(channels_last=True)

Item = TypeVar("Item")
Emit = Callable[..., relax.Expr]
# Ops that are one expression; the others follow as functions.
RELAX: dict[type[Op], Emit] = {
    ir_ops.CastOp: lambda op, x, axes: R.astype(x, relax_dtype(op.attrs.dtype)),
    ir_ops.LeakyReluOp: lambda op, x, axes: R.nn.leakyrelu(x, op.attrs.negative_slope),
    ir_ops.GeluOp: lambda op, x, axes: R.nn.gelu_tanh(x) if op.attrs.approximate == "tanh" else R.nn.gelu(x),
    ir_ops.HardSwishOp: lambda op, x, axes: R.multiply(x, _hard_sigmoid(op, x, axes)),
    ir_ops.ReciprocalOp: lambda op, x, axes: R.divide(scalar(1.0, op.result.type.dtype), x),
    ir_ops.ReshapeOp: lambda op, x, axes: R.reshape(x, op.result.shape),
    ir_ops.PermuteOp: lambda op, x, axes: R.permute_dims(x, list(op.attrs.dims)),
    ir_ops.ExpandOp: lambda op, x, axes: R.broadcast_to(x, axes.order(op.result.shape)),
    ir_ops.ConcatOp: lambda op, *parts, axes: R.concat(list(parts), axes(op.attrs.axis)),
    ir_ops.EmbeddingOp: lambda op, table, indices, axes: R.take(table, indices, axis=0),
    ir_ops.AdaptiveAvgPool2dOp: lambda op, x, axes: _in_float(
        op, x, lambda wide: R.nn.adaptive_avg_pool2d(wide, op.attrs.size, axes.layout)
    ),
}


def relax_dtype(dtype: DType) -> str:
    """TVM's name of an element type."""
    return str(dtype.torch).removeprefix("torch.")


def scalar(value: float | int | bool, dtype: DType) -> relax.Expr:
    """A Relax constant of one number."""
    return relax.const(np.asarray(value), relax_dtype(dtype))


def emits(*kinds: type[Op]) -> Callable[[Emit], Emit]:
    """Register how ops of these kinds are computed: a function of the op, its operands, and ``axes``."""

    def register(function: Emit) -> Emit:
        RELAX.update(dict.fromkeys(kinds, function))
        return function

    return register


# Elementwise -------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[type[Op], Callable[..., relax.Expr]] = {
    ir_ops.ReluOp: R.nn.relu,
    ir_ops.SigmoidOp: R.sigmoid,
    ir_ops.SiluOp: R.nn.silu,
    ir_ops.TanhOp: R.tanh,
    ir_ops.ExpOp: R.exp,
    ir_ops.LogOp: R.log,
    ir_ops.SqrtOp: R.sqrt,
    ir_ops.RsqrtOp: R.rsqrt,
    ir_ops.ErfOp: R.erf,
    ir_ops.SinOp: R.sin,
    ir_ops.CosOp: R.cos,
    ir_ops.NegOp: R.negative,
    ir_ops.AbsOp: R.abs,
    ir_ops.FloorOp: R.floor,
    ir_ops.CeilOp: R.ceil,
    ir_ops.LogicalNotOp: R.logical_not,
    ir_ops.AddOp: R.add,
    ir_ops.SubOp: R.subtract,
    ir_ops.MulOp: R.multiply,
    ir_ops.DivOp: R.divide,
    ir_ops.MaximumOp: R.maximum,
    ir_ops.MinimumOp: R.minimum,
    ir_ops.PowOp: R.power,
    ir_ops.EqOp: R.equal,
    ir_ops.NeOp: R.not_equal,
    ir_ops.LtOp: R.less,
    ir_ops.LeOp: R.less_equal,
    ir_ops.GtOp: R.greater,
    ir_ops.GeOp: R.greater_equal,
    ir_ops.LogicalAndOp: R.logical_and,
    ir_ops.LogicalOrOp: R.logical_or,
    ir_ops.WhereOp: R.where,
}


@emits(*_FUNCTIONS)
def _function(op: Op, *operands: relax.Expr, axes: Axes) -> relax.Expr:
    return _FUNCTIONS[type(op)](*operands)


@emits(ir_ops.ClampOp)
def _clamp(op: Op, x: relax.Expr, axes: Axes) -> relax.Expr:
    dtype = op.result.type.dtype
    if op.attrs.min != -math.inf:
        x = R.maximum(x, scalar(op.attrs.min, dtype))
    return x if op.attrs.max == math.inf else R.minimum(x, scalar(op.attrs.max, dtype))


@emits(ir_ops.HardSigmoidOp)
def _hard_sigmoid(op: Op, x: relax.Expr, axes: Axes) -> relax.Expr:
    dtype = op.result.type.dtype
    shifted = R.maximum(R.add(x, scalar(3.0, dtype)), scalar(0.0, dtype))
    return R.divide(R.minimum(shifted, scalar(6.0, dtype)), scalar(6.0, dtype))


# Data movement -----------------------------------------------------------------------------------------------------


@emits(ir_ops.SliceOp)
def _slice(op: Op, x: relax.Expr, axes: Axes) -> relax.Expr:
    attrs = op.attrs
    return R.strided_slice(x, [axes(attrs.axis)], [attrs.start], [attrs.stop], [attrs.step])


@emits(ir_ops.ChannelShuffleOp)
def _channel_shuffle(op: Op, *parts: relax.Expr, axes: Axes) -> relax.Expr:
    joined = parts[0] if len(parts) == 1 else R.concat(list(parts), axes(1))
    shape = list(op.result.shape)
    shape[1] = sum(part.shape[1] for part in op.inputs)
    groups, at = op.attrs.groups, axes(1)
    stored = axes.order(shape)
    split = [*stored[:at], groups, shape[1] // groups, *stored[at + 1 :]]
    swapped = [*range(at), at + 1, at, *range(at + 2, 5)]
    shuffled = R.reshape(R.permute_dims(R.reshape(joined, split), swapped), stored)
    if (op.attrs.start, op.attrs.stop) == (0, shape[1]):
        return shuffled
    return R.strided_slice(shuffled, [at], [op.attrs.start], [op.attrs.stop])


@emits(ir_ops.PadOp)
def _pad(op: Op, x: relax.Expr, axes: Axes) -> relax.Expr:
    pairs = zip(axes.order(op.attrs.before), axes.order(op.attrs.after), strict=True)
    return R.nn.pad(x, [amount for pair in pairs for amount in pair], pad_value=op.attrs.value)


# Reductions, normalisation, pooling --------------------------------------------------------------------------------

_REDUCE: dict[type[Op], Callable[..., relax.Expr]] = {
    ir_ops.MeanOp: R.mean,
    ir_ops.SumOp: R.sum,
    ir_ops.MaxOp: R.max,
    ir_ops.MinOp: R.min,
}


def _in_float(op: Op, x: relax.Expr, compute: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
    """``compute(x)``, in float32 where the op's numbers are of half precision."""
    dtype = op.result.type.dtype
    if dtype not in (DType.F16, DType.BF16):
        return compute(x)
    return R.astype(compute(R.astype(x, "float32")), relax_dtype(dtype))


@emits(*_REDUCE)
def _reduce(op: ReduceOp, x: relax.Expr, axes: Axes) -> relax.Expr:
    stored = sorted(axes(axis) for axis in op.attrs.axes)
    return _in_float(op, x, lambda wide: _REDUCE[type(op)](wide, stored, op.attrs.keepdim))


@emits(ir_ops.SoftmaxOp)
def _softmax(op: Op, x: relax.Expr, axes: Axes) -> relax.Expr:
    function = R.nn.log_softmax if op.attrs.log else R.nn.softmax
    return _in_float(op, x, lambda wide: function(wide, axes(op.attrs.axis)))


@emits(ir_ops.LayerNormOp)
def _layer_norm(op: ir_ops.LayerNormOp, x: relax.Expr, *parameters: relax.Expr, axes: Axes) -> relax.Expr:
    """As the template does it: TVM's own takes the variance from the squares' mean, which a large mean drowns."""
    last = list(range(-op.attrs.dims, 0))
    name = relax.BlockBuilder.current().emit

    def averaged(values: relax.Expr, beside: relax.Expr) -> relax.Expr:
        """The mean, with as many numbers ``beside`` as are absent."""
        mean = R.mean(values, last, keepdims=True)
        if not op.attrs.absent:
            return mean
        count = math.prod(op.x.shape[-op.attrs.dims :])
        share = scalar(op.attrs.absent / (count + op.attrs.absent), DType.F32)
        return name(R.add(mean, R.multiply(R.subtract(beside, mean), share)))

    def normalised(wide: relax.Expr) -> relax.Expr:
        distance, beside = wide, scalar(0.0, DType.F32)
        for _ in range(2):  # a mean is rounded, so what is left has one too
            mean = averaged(distance, beside)
            distance, beside = name(R.subtract(distance, mean)), R.subtract(beside, mean)
        variance = averaged(R.multiply(distance, distance), R.multiply(beside, beside))
        result = R.multiply(distance, R.rsqrt(R.add(variance, scalar(op.attrs.eps, DType.F32))))
        for apply, parameter in zip((R.multiply, R.add), parameters, strict=False):
            result = result if parameter is None else apply(result, R.astype(parameter, "float32"))
        return result

    return _in_float(op, name(x), normalised)


@emits(ir_ops.MaxPool2dOp)
def _max_pool(op: Pool2dOp, x: relax.Expr, axes: Axes) -> relax.Expr:
    attrs = op.attrs
    return R.nn.max_pool2d(x, attrs.kernel, attrs.stride, _window_padding(op), attrs.dilation, layout=axes.layout)


@emits(ir_ops.AvgPool2dOp)
def _avg_pool(op: Pool2dOp, x: relax.Expr, axes: Axes) -> relax.Expr:
    attrs, padding = op.attrs, _window_padding(op)

    def average(wide: relax.Expr) -> relax.Expr:
        whole = R.nn.avg_pool2d(wide, attrs.kernel, attrs.stride, padding, layout=axes.layout, count_include_pad=True)
        factors = _divisor_factors(op, padding)
        if bool((factors == 1.0).all()):
            return whole
        return R.multiply(whole, relax.const(factors.permute(axes.order(range(4))).contiguous().numpy(), "float32"))

    return _in_float(op, x, average)


@emits(ir_ops.ResizeOp)
def _resize(op: ResizeOp, x: relax.Expr, axes: Axes) -> relax.Expr:
    """Elements that are looked up, times their weights, along the height and then the width."""

    def interpolated(wide: relax.Expr) -> relax.Expr:
        for axis in range(2):
            taps = op.taps(axis)
            shape = [1, 1, 1, 1]
            shape[axes(2 + axis)] = -1
            terms = [
                R.multiply(
                    R.take(wide, relax.const(places.contiguous().numpy(), "int32"), axis=axes(2 + axis)),
                    relax.const(weights.reshape(shape).contiguous().numpy()),
                )
                for places, weights in zip(taps.places.t(), taps.weights.t(), strict=True)
            ]
            wide = functools.reduce(R.add, terms)
        return wide

    return _in_float(op, x, interpolated)


def _window_padding(op: Pool2dOp) -> tuple[int, int, int, int]:
    """Top, left, bottom and right, so that windows counted by rounding down are those of the op, ceil mode or not."""
    attrs, after = op.attrs, []
    for i in range(2):
        span = attrs.dilation[i] * (attrs.kernel[i] - 1) + 1
        covered = (op.result.shape[2 + i] - 1) * attrs.stride[i] + span
        after.append(max(0, covered - attrs.padding[i] - op.x.shape[2 + i]))
    return (*attrs.padding, *after)


def _divisor_factors(op: Pool2dOp, padding: tuple[int, int, int, int]) -> torch.Tensor:
    """What sums divided by the whole window must be multiplied by, [1, 1, OH, OW]: the op may count fewer elements."""
    attrs = op.attrs
    ones = torch.ones((1, 1, *op.x.shape[2:]), dtype=torch.float64)
    top, left, bottom, right = padding
    padded = functional.pad(ones, (left, right, top, bottom))
    height, width = op.result.shape[2:]
    covered = functional.avg_pool2d(padded, attrs.kernel, attrs.stride)[..., :height, :width]
    window = (attrs.kernel, attrs.stride, attrs.padding, attrs.ceil, attrs.count_include_pad)
    return (functional.avg_pool2d(ones, *window) / covered).float()
