"""Convolutions, linear layers, matrix products, attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....ir import DType, Value, ops
from ....ir.ops.integers import LEAST_PEAK, LEAST_POWER, LOG2_E, QUANTIZED, SHARE_POLYNOMIAL
from ..writer import Writer, writes
from .quantization import check_read_as_numbers, in_units


def window(op: ops.Conv2dOp | ops.Conv3dOp) -> dict[str, Any]:
    """The attributes of a convolution."""
    attrs = op.attrs
    return {
        "strides": list(attrs.stride),
        "pads": list(attrs.padding),
        "dilations": list(attrs.dilation),
        "group": attrs.groups,
    }


@writes(ops.Conv2dOp, ops.Conv3dOp)
def conv(writer: Writer, op: ops.Conv2dOp) -> str | None:
    if op.x.type.dtype in QUANTIZED:
        check_read_as_numbers(op)
        return None
    bias = "" if op.bias is None else writer.name(op.bias)
    return writer.node("Conv", writer.name(op.x), writer.name(op.weight), bias, **window(op))


@writes(ops.LinearOp)
def linear(writer: Writer, op: ops.LinearOp) -> str | None:
    if op.x.type.dtype in QUANTIZED:
        check_read_as_numbers(op)
        return None
    bias = "" if op.bias is None else writer.name(op.bias)
    if op.x.type.rank == 2:
        return writer.node("Gemm", writer.name(op.x), writer.name(op.weight), bias, transB=1)
    product = writer.node("MatMul", writer.name(op.x), transposed(writer, op.weight))
    return writer.node("Add", product, bias) if bias else product


@writes(ops.MatmulOp)
def matmul(writer: Writer, op: ops.MatmulOp) -> str | None:
    if op.lhs.type.dtype in QUANTIZED:
        check_read_as_numbers(op)
        return None
    rhs = transposed(writer, op.rhs) if op.attrs.transpose_rhs else writer.name(op.rhs)
    return writer.node("MatMul", writer.name(op.lhs), rhs)


@writes(ops.AttentionOp)
def attention(writer: Writer, op: ops.AttentionOp) -> str:
    """``softmax(query key^T * scale + mask) value``."""
    if op.query.type.dtype in QUANTIZED:
        return _attention_on_integers(writer, op)
    query = writer.node("Mul", writer.name(op.query), writer.number(op.scale, op.result.type.dtype.torch))
    scores = _masked(writer, op, writer.node("MatMul", query, transposed(writer, op.key)))
    return writer.node("MatMul", writer.node("Softmax", scores, axis=-1), writer.name(op.value))


def _masked(writer: Writer, op: ops.AttentionOp, scores: str) -> str:
    """Scores of an attention with what its mask adds."""
    dtype = op.result.type.dtype.torch
    nothing, never = writer.number(0.0, dtype), writer.number(-math.inf, dtype)
    if op.mask is not None:
        mask = writer.name(op.mask)
        if op.mask.type.dtype is DType.BOOL:
            mask = writer.node("Where", mask, nothing, never)
        scores = writer.node("Add", scores, mask)
    if op.attrs.causal:
        seen = torch.ones(int(op.query.shape[-2]), int(op.key.shape[-2]), dtype=torch.bool).tril()
        scores = writer.node("Where", writer.tensor(seen, "seen"), scores, never)
    return scores


def _attention_on_integers(writer: Writer, op: ops.AttentionOp) -> str:
    """Its operations one by one, since no operator rounds weights as `softmax_shares` does: the same numbers."""

    def number(value: float) -> str:
        return writer.number(value, torch.float32)

    query, value = in_units(writer, op.query, op.attrs.query_zero), in_units(writer, op.value, op.attrs.value_zero)
    key = in_units(writer, op.key, 128 if op.key.type.dtype is DType.U8 else 0)
    sums = writer.node("MatMul", query, turned(writer, key, op.key.type.rank))
    scores = _masked(writer, op, writer.node("Mul", sums, number(op.scale)))
    last = writer.numbers((-1,))
    peaks = writer.node("Max", writer.node("ReduceMax", scores, last, keepdims=1), number(LEAST_PEAK))
    powers = writer.node("Mul", writer.node("Sub", scores, peaks), number(LOG2_E))
    powers = writer.node("Max", powers, number(LEAST_POWER))
    exponents = writer.node("Round", powers)
    rest, share = writer.node("Sub", powers, exponents), number(SHARE_POLYNOMIAL[0])
    for coefficient in SHARE_POLYNOMIAL[1:]:
        share = writer.node("Add", writer.node("Mul", share, rest), number(coefficient))
    weights = writer.node("Round", writer.node("Mul", share, writer.node("Pow", number(2.0), exponents)))
    total = writer.node("Max", writer.node("ReduceSum", weights, last, keepdims=1), number(1.0))
    return writer.node("Mul", writer.node("MatMul", weights, value), writer.node("Reciprocal", total))


def transposed(writer: Writer, value: Value) -> str:
    """The last two dimensions exchanged: of a constant in the file, else by a node."""
    numbers = writer.known(value)
    if numbers is not None:
        return writer.tensor(numbers.transpose(-1, -2).contiguous(), f"{writer.name(value)}.transposed")
    return turned(writer, writer.name(value), value.type.rank)


def turned(writer: Writer, name: str, rank: int) -> str:
    """A node that exchanges the last two dimensions."""
    *leading, rows, columns = range(rank)
    return writer.node("Transpose", name, perm=[*leading, columns, rows])
