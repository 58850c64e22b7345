"""Normalisations and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...ir import Value
from ...ir.ops import AddOp, BatchNormOp, LayerNormOp, MulOp, SoftmaxOp
from ..context import Context, axis_of
from ..registry import Converter, converter, register_each

aten = torch.ops.aten
_OF_BATCH = "batch normalisation by the statistics of the batch; call model.eval() and track running statistics"


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
    if training or running_mean is None or running_var is None:
        ctx.refuse(_OF_BATCH)
    return _batch_norm(ctx, x, weight, bias, running_mean, running_var, eps)


@converter(aten._native_batch_norm_legit_functional.default)
def batch_norm_in_training(ctx: Context, *args: Any) -> Value:
    ctx.refuse(_OF_BATCH)


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
) -> tuple[Value | None, ...]:
    return _batch_norm(ctx, x, weight, bias, running_mean, running_var, eps), None, None


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
    return layer_norm(ctx, x, normalized_shape, weight, bias, eps), None, None


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
    return group_norm(ctx, x, group, weight, bias, eps), None, None


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
    def convert(ctx: Context, x: Value, dim: int, *_: Any, **_options: Any) -> Value:
        """What else is given decides the type of the result, which is known."""
        attrs = SoftmaxOp.attrs_type(axis=axis_of(dim, len(x.shape)), log=log)
        return ctx.emit(SoftmaxOp, ctx.cast(x, ctx.dtype), attrs=attrs)

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
