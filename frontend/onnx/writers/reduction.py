"""Reductions, poolings, normalisations."""

from __future__ import annotations

import math

import torch

from ....ir import DType, Value, ops
from ....ir.ops.integers import QUANTIZED
from ...registry import Inexpressible
from ..writer import Writer, writes

_REDUCTIONS = {
    ops.MeanOp: "ReduceMean",
    ops.SumOp: "ReduceSum",
    ops.MaxOp: "ReduceMax",
    ops.MinOp: "ReduceMin",
    ops.ProdOp: "ReduceProd",
}


def numbers_of(writer: Writer, x: Value) -> str:
    """What is averaged: 8-bit integers as f32 numbers."""
    return writer.cast(writer.name(x), DType.F32) if x.type.dtype in QUANTIZED else writer.name(x)


@writes(*_REDUCTIONS)
def reduce(writer: Writer, op: ops.MeanOp) -> str:
    x = numbers_of(writer, op.x) if isinstance(op, ops.MeanOp) else writer.name(op.x)
    return writer.node(_REDUCTIONS[type(op)], x, writer.numbers(op.attrs.axes), keepdims=int(op.attrs.keepdim))


@writes(ops.MaxMagnitudeOp)
def max_magnitude(writer: Writer, op: ops.MaxMagnitudeOp) -> str:
    magnitudes = writer.node("Abs", writer.name(op.x))
    return writer.node("ReduceMax", magnitudes, writer.numbers(op.attrs.axes), keepdims=int(op.attrs.keepdim))


@writes(ops.MaxPool2dOp)
def max_pool(writer: Writer, op: ops.MaxPool2dOp) -> str:
    """Windows that ``ceil`` adds lie in more padding, which never wins."""
    attrs, sides = op.attrs, _ends(op)
    return writer.node(
        "MaxPool",
        writer.name(op.x),
        kernel_shape=list(attrs.kernel),
        strides=list(attrs.stride),
        dilations=list(attrs.dilation),
        pads=[*attrs.padding, *sides],
    )


@writes(ops.AvgPool2dOp)
def avg_pool(writer: Writer, op: ops.AvgPool2dOp) -> str:
    attrs = op.attrs
    if tuple(_ends(op)) != attrs.padding:
        raise Inexpressible("a window over the end of the data, of which ONNX counts other elements")
    return writer.node(
        "AveragePool",
        numbers_of(writer, op.x),
        kernel_shape=list(attrs.kernel),
        strides=list(attrs.stride),
        pads=[*attrs.padding, *attrs.padding],
        count_include_pad=int(attrs.count_include_pad),
    )


def _ends(op: ops.MaxPool2dOp | ops.AvgPool2dOp) -> list[int]:
    """Padding behind the data that the last windows need, at least that which the op has."""
    attrs = op.attrs
    windows = zip(
        op.x.shape[2:], op.result.shape[2:], attrs.kernel, attrs.stride, attrs.dilation, attrs.padding, strict=True
    )
    return [
        max(pad, (count - 1) * stride + dilation * (taps - 1) + 1 - extent - pad)
        for extent, count, taps, stride, dilation, pad in windows
    ]


@writes(ops.AdaptiveAvgPool2dOp)
def adaptive_avg_pool(writer: Writer, op: ops.AdaptiveAvgPool2dOp) -> str:
    if any(size != 1 for size in op.attrs.size):
        raise Inexpressible("windows of several sizes; only an average of all is written")
    return writer.node("GlobalAveragePool", numbers_of(writer, op.x))


@writes(ops.SoftmaxOp)
def softmax(writer: Writer, op: ops.SoftmaxOp) -> str:
    return writer.node("LogSoftmax" if op.attrs.log else "Softmax", writer.name(op.x), axis=op.attrs.axis)


@writes(ops.LayerNormOp)
def layer_norm(writer: Writer, op: ops.LayerNormOp) -> str:
    if op.attrs.absent:
        return _with_zeros_beside(writer, op)
    shape = op.x.shape[-op.attrs.dims :]
    gamma = _or_filled(writer, op.gamma, 1.0, shape, op.x.type.dtype)
    beta = "" if op.beta is None else writer.name(op.beta)
    return writer.node(
        "LayerNormalization", writer.name(op.x), gamma, beta, axis=-op.attrs.dims, epsilon=float(op.attrs.eps)
    )


def _with_zeros_beside(writer: Writer, op: ops.LayerNormOp) -> str:
    """The zeros that statistics count are appended, and cut off again."""
    rows, count = op.x.shape[: -op.attrs.dims], math.prod(op.x.shape[-op.attrs.dims :])
    flat = writer.node("Reshape", writer.name(op.x), writer.numbers((*rows, count)))
    padding = [0] * (2 * len(rows) + 1) + [op.attrs.absent]
    whole = writer.node("Pad", flat, writer.numbers(padding), writer.number(0.0, op.x.type.dtype.torch))
    ones = _or_filled(writer, None, 1.0, (count + op.attrs.absent,), op.x.type.dtype)
    normed = writer.node("LayerNormalization", whole, ones, "", axis=-1, epsilon=float(op.attrs.eps))
    ranges = [writer.numbers([one]) for one in (0, count, len(rows), 1)]
    result = writer.node("Reshape", writer.node("Slice", normed, *ranges), writer.numbers(op.x.shape))
    for kind, parameter in (("Mul", op.gamma), ("Add", op.beta)):
        result = result if parameter is None else writer.node(kind, result, writer.name(parameter))
    return result


@writes(ops.BatchNormOp)
def batch_norm(writer: Writer, op: ops.BatchNormOp) -> str:
    shape, dtype = op.mean.shape, op.mean.type.dtype
    factors = _or_filled(writer, op.gamma, 1.0, shape, dtype), _or_filled(writer, op.beta, 0.0, shape, dtype)
    statistics = writer.name(op.mean), writer.name(op.variance)
    return writer.node("BatchNormalization", writer.name(op.x), *factors, *statistics, epsilon=float(op.attrs.eps))


def _or_filled(writer: Writer, value: Value | None, number: float, shape: tuple[int, ...], dtype: DType) -> str:
    if value is not None:
        return writer.name(value)
    return writer.tensor(torch.full([int(one) for one in shape], number, dtype=dtype.torch), "filled")
