"""Normalisations and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...ir import DType, TensorType, Value
from ...ir.ops import AddOp, BatchNormOp, LayerNormOp, MeanOp, MulOp, RsqrtOp, SoftmaxOp
from ..context import Context, axis_of
from ..expressions import Expression
from ..registry import Converted, Converter, converter, register_each
from .reduction import reduce_axes, variance

aten = torch.ops.aten


@converter(aten.batch_norm.default)
def batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    if not training and running_mean is not None and running_var is not None:
        return _batch_norm(ctx, x, weight, bias, running_mean, running_var, eps)
    if running_mean is not None:
        ctx.refuse("batch normalisation in training mode, which updates its statistics; call model.eval()")
    return _by_own_statistics(ctx, x, weight, bias, eps)[0]


@converter(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_statistics(
    ctx: Context, x: Value, weight: Value | None, bias: Value | None, training: bool, momentum: float, eps: float
) -> Converted:
    result, mean, variance = _by_own_statistics(ctx, x, weight, bias, eps)
    return result, mean, _reciprocal_root(ctx, variance, eps)


@converter(aten._native_batch_norm_legit_functional.default)
def batch_norm_in_training(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    """The result, the statistics of the batch, and the new running ones."""
    if not training:
        results = native_batch_norm(ctx, x, weight, bias, running_mean, running_var, momentum, eps)
        return *results, running_mean, running_var
    result, mean, variance = _by_own_statistics(ctx, x, weight, bias, eps)
    count = x.type.size // x.shape[1]
    own = (Expression(ctx, mean), Expression(ctx, variance) * (count / max(count - 1, 1)))
    running = (Expression(ctx, running_mean), Expression(ctx, running_var))
    updated = [(old * (1 - momentum) + new * momentum).value for old, new in zip(running, own, strict=True)]
    return result, mean, _reciprocal_root(ctx, variance, eps), *updated


@converter(aten._batch_norm_with_update_functional.default)
def batch_norm_with_update(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> Converted:
    results = batch_norm_in_training(ctx, x, weight, bias, running_mean, running_var, True, momentum, eps)
    return *results[:3], ctx.full(0, TensorType((0,), DType.U8)), *results[3:]


def _by_own_statistics(
    ctx: Context, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    """The result, mean and variance of each channel."""
    axes = [axis for axis in range(len(x.shape)) if axis != 1]
    mean, spread = reduce_axes(ctx, MeanOp, x, axes, keepdim=True), variance(ctx, x, axes, 0, keepdim=True)
    root = Expression(ctx, _reciprocal_root(ctx, spread, eps))
    result = _affine(ctx, ((Expression(ctx, x) - Expression(ctx, mean)) * root).value, weight, bias)
    return result, ctx.reshape(mean, (x.shape[1],)), ctx.reshape(spread, (x.shape[1],))


def _reciprocal_root(ctx: Context, spread: Value, eps: float) -> Value:
    return (Expression(ctx, spread) + eps).apply(RsqrtOp).value


@converter(aten._native_batch_norm_legit_no_training.default)
def native_batch_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    none = ctx.full(0, running_mean.type.with_shape((0,)))
    return _batch_norm(ctx, x, weight, bias, running_mean, running_var, eps), none, none


def _batch_norm(
    ctx: Context, x: Value, gamma: Value | None, beta: Value | None, mean: Value, variance: Value, eps: float
) -> Value:
    return ctx.emit(BatchNormOp, x, mean, variance, gamma, beta, attrs=BatchNormOp.attrs_type(eps=eps))


@converter(aten.layer_norm.default)
def layer_norm(
    ctx: Context,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    return ctx.emit(LayerNormOp, x, weight, bias, attrs=LayerNormOp.attrs_type(dims=len(normalized_shape), eps=eps))


@converter(aten.native_layer_norm.default)
def native_layer_norm(
    ctx: Context, x: Value, normalized_shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value | None, ...]:
    result = layer_norm(ctx, x, normalized_shape, weight, bias, eps)
    axes = range(len(x.shape) - len(normalized_shape), len(x.shape))
    return result, *_statistics(ctx, x, list(axes), eps, keepdim=True)


def _statistics(ctx: Context, x: Value, axes: list[int], eps: float, keepdim: bool) -> tuple[Value | None, ...]:
    """Mean and reciprocal standard deviation, where a second or third result is used."""
    if not ctx.used_results & {1, 2}:
        return None, None
    spread = variance(ctx, x, axes, 0, keepdim)
    return reduce_axes(ctx, MeanOp, x, axes, keepdim), _reciprocal_root(ctx, spread, eps)


@converter(aten.group_norm.default)
def group_norm(
    ctx: Context,
    x: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """A layer norm over each group of channels, then scale and shift per channel."""
    rows = ctx.reshape(x, (x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups))
    return _affine(ctx, ctx.reshape(layer_norm(ctx, rows, rows.shape[2:], eps=eps), x.shape), weight, bias)


@converter(aten.native_group_norm.default)
def native_group_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    batch: int,
    channels: int,
    area: int,
    group: int,
    eps: float,
) -> tuple[Value | None, ...]:
    rows = ctx.reshape(x, (batch, group, channels // group * area))
    return group_norm(ctx, x, group, weight, bias, eps), *_statistics(ctx, rows, [2], eps, keepdim=False)


@converter(aten.instance_norm.default)
def instance_norm(
    ctx: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    if use_input_stats:
        return group_norm(ctx, x, x.shape[1], weight, bias, eps)
    if running_mean is None or running_var is None:
        ctx.refuse("instance normalisation without statistics")
    return _batch_norm(ctx, x, weight, bias, running_mean, running_var, eps)


def _affine(ctx: Context, x: Value, weight: Value | None, bias: Value | None) -> Value:
    per_channel = (-1,) + (1,) * (len(x.shape) - 2)
    for kind, parameter in ((MulOp, weight), (AddOp, bias)):
        if parameter is not None:
            x = ctx.emit(kind, x, ctx.reshape(parameter, (parameter.shape[0], *per_channel[1:])))
    return x


def _softmax(log: bool) -> Converter:
    def convert(ctx: Context, x: Value, dim: int, *_: object, **_options: object) -> Value:
        """What else is given decides the type of the result, which is known."""
        attrs = SoftmaxOp.attrs_type(axis=axis_of(dim, len(x.shape)), log=log)
        line = x if x.shape else ctx.reshape(x, (1,))
        return ctx.reshape(ctx.emit(SoftmaxOp, ctx.cast(line, ctx.dtype), attrs=attrs), x.shape)

    return convert


register_each(
    {
        aten.softmax.int: False,
        aten._softmax.default: False,
        aten.log_softmax.int: True,
        aten._log_softmax.default: True,
    },
    _softmax,
)
