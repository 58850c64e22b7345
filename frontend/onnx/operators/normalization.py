"""Normalisations and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from ..known import default_only, refuse
from ..registry import operator

Tensor = torch.Tensor


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    default_only(training_mode=training_mode)
    return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, None, None, scale, bias, eps=epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> Tensor:
    if outputs > 1:
        refuse("mean and deviation as outputs")
    shape = x.shape[axis % x.ndim :]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    scaled = functional.layer_norm(x, shape, eps=epsilon) * scale
    return scaled if bias is None else scaled + bias


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    square = (x * x).mean(tuple(range(axis % x.ndim, x.ndim)), keepdim=True)
    return x * torch.rsqrt(square + epsilon) * scale


@operator("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int = 1,
    stash_type: int = 1,
    opset: int = 21,
) -> Tensor:
    """Opset 18 has scale and bias for each group, later ones for each channel."""
    if opset < 21:
        scale, bias = (one.repeat_interleave(x.shape[1] // num_groups) for one in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LRN")
def local_response_normalization(
    x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
) -> Tensor:
    if size % 2 == 0:
        refuse("an even number of neighbours")
    return functional.local_response_norm(x, size, alpha, beta, bias)


@operator("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return x / norm


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / ((centred * centred).mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


@operator("Softmax")
def softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        return torch.softmax(x, -1 if axis is None else axis)
    return torch.softmax(_rows(x, axis), -1).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        return torch.log_softmax(x, -1 if axis is None else axis)
    return torch.log_softmax(_rows(x, axis), -1).reshape(x.shape)


@operator("Hardmax")
def hardmax(x: Tensor, *, axis: int | None = None, opset: int = 13) -> Tensor:
    if opset >= 13:
        rows = x.movedim(-1 if axis is None else axis, -1)
        ones = torch.arange(rows.shape[-1]) == rows.argmax(-1, keepdim=True)
        return ones.movedim(-1, -1 if axis is None else axis).to(x.dtype)
    rows = _rows(x, axis)
    return (torch.arange(rows.shape[-1]) == rows.argmax(-1, keepdim=True)).to(x.dtype).reshape(x.shape)


def _rows(x: Tensor, axis: int | None) -> Tensor:
    """As opsets before 13 see it: a matrix, with all axes from the given one on in its rows."""
    first = (1 if axis is None else axis) % max(x.ndim, 1)
    if first == x.ndim - 1:
        return x
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))
