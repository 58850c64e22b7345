"""Integers: QuantizeLinear and DequantizeLinear around floating-point operators, which runtimes compute on integers.

Layers that sum integers are written where their sums become numbers::

    dequantize(conv2d(q, w, b) {zero_point=z}, s)   ->   Conv(DequantizeLinear(q, 1, z), DequantizeLinear(w, s),
                                                              DequantizeLinear(b, s))

Only the product of the scales of operand and weight is known, so the weight has it, and the operand the scale 1. The
same goes for products of two activations.
"""

from __future__ import annotations

import torch

from ....ir import DType, Value, ops
from ....ir.ops import LayerOp
from ....ir.ops.integers import QUANTIZED, integer_range
from ....ir.ops.packed import unpack_integers
from ...registry import Inexpressible
from ..writer import Writer, writes


@writes(ops.QuantizeOp)
def quantize(writer: Writer, op: ops.QuantizeOp) -> str:
    scale = writer.number(op.attrs.scale, torch.float32)
    zero = writer.number(op.attrs.zero_point, op.attrs.dtype.torch)
    return writer.node("QuantizeLinear", writer.name(op.x), scale, zero)


@writes(ops.QuantizeByOp)
def quantize_by(writer: Writer, op: ops.QuantizeByOp) -> str:
    steps = writer.node("Mul", writer.name(op.x), writer.node("Reciprocal", writer.name(op.scale)))
    return writer.node("QuantizeLinear", steps, writer.number(1.0, torch.float32), writer.number(0, torch.int8))


@writes(ops.LookupOp)
def lookup(writer: Writer, op: ops.LookupOp) -> str:
    places = writer.cast(writer.name(op.x), DType.I32)
    smallest = integer_range(op.x.type.dtype)[0]
    if smallest:
        places = writer.node("Sub", places, writer.number(smallest, torch.int32))
    return writer.node("Gather", writer.name(op.table), places)


@writes(ops.PackedLinearOp)
def packed_linear(writer: Writer, op: ops.PackedLinearOp) -> str:
    """A product with a dequantized weight, each group of inputs of which is a row until it has its scale."""
    weight, scale = writer.known(op.weight), writer.known(op.scale)
    outputs, inputs = op.weight.shape[0], op.x.shape[-1]
    group = min(op.attrs.group, inputs)
    if weight is None or scale is None:
        raise Inexpressible("a weight that is computed")
    if inputs % group:
        raise Inexpressible("a last group of inputs that is shorter than the others")
    integers = writer.tensor(unpack_integers(weight, op.attrs.bits).reshape(-1, group), "integers")
    scales = scale.flatten()
    zeros = writer.tensor(torch.zeros_like(scales, dtype=torch.int8), "zero_point")
    rows = writer.node("DequantizeLinear", integers, writer.tensor(scales, "scale"), zeros, axis=0)
    matrix = writer.node("Transpose", writer.node("Reshape", rows, writer.numbers((outputs, inputs))), perm=[1, 0])
    is_float = op.x.type.dtype is DType.F32
    x = writer.name(op.x) if is_float else _numbers(writer, op.x, torch.tensor(1.0), op.attrs.zero_point)
    product = writer.node("MatMul", x, matrix)
    return product if op.bias is None else writer.node("Add", product, writer.name(op.bias))


@writes(ops.DequantizeOp)
def dequantize(writer: Writer, op: ops.DequantizeOp) -> str:
    scale = writer.known(op.scale)
    if scale is None:
        return writer.node("Mul", in_units(writer, op.x, op.attrs.zero_point), writer.name(op.scale))
    layer = writer.origin(op.x).op
    if isinstance(layer, LayerOp) and layer.x.type.dtype in QUANTIZED:
        return _layer(writer, layer, scale)
    if isinstance(layer, ops.MatmulOp):
        return _product(writer, layer, scale)
    wide = [axis for axis, extent in enumerate(scale.shape, op.x.type.rank - scale.dim()) if extent != 1]
    if len(wide) > 1:
        raise Inexpressible("scales along several dimensions")
    if op.x.type.dtype is DType.I32 and op.attrs.zero_point:
        raise Inexpressible("a zero point of i32 numbers")
    return _numbers(writer, op.x, scale.flatten() if wide else scale.reshape(()), op.attrs.zero_point, *wide)


def in_units(writer: Writer, x: Value, zero_point: int) -> str:
    """The numbers that 8-bit integers stand for, in units of their scale."""
    return _numbers(writer, x, torch.tensor(1.0), zero_point)


def check_read_as_numbers(op: LayerOp | ops.MatmulOp) -> None:
    """Raise Inexpressible unless integer sums are only read by ops that make numbers of them."""
    if not op.result.users or not all(isinstance(user, ops.DequantizeOp) for user in op.result.users):
        raise Inexpressible("integer sums that are read by anything but a dequantize")


def _numbers(writer: Writer, x: Value, scale: torch.Tensor, zero_point: int, axis: int | None = None) -> str:
    """A DequantizeLinear node; with an axis if there are several scales."""
    names = [writer.name(x), writer.tensor(scale.contiguous(), "scale")]
    if x.type.dtype is not DType.I32:  # which has none
        names.append(writer.tensor(torch.full_like(scale, zero_point, dtype=x.type.dtype.torch), "zero_point"))
    return writer.node("DequantizeLinear", *names, **({} if axis is None else {"axis": axis}))


def _product(writer: Writer, op: ops.MatmulOp, scale: torch.Tensor) -> str:
    if scale.numel() != 1:
        raise Inexpressible("a product of two activations with several scales")
    rhs = _numbers(writer, op.rhs, scale.reshape(()), op.attrs.rhs_zero)
    if op.attrs.transpose_rhs:
        *leading, rows, columns = range(op.rhs.type.rank)
        rhs = writer.node("Transpose", rhs, perm=[*leading, columns, rows])
    return writer.node("MatMul", in_units(writer, op.lhs, op.attrs.lhs_zero), rhs)


def _layer(writer: Writer, op: LayerOp, scale: torch.Tensor) -> str:
    from .layers import window

    channels = int(op.weight.shape[0])
    scales = scale.flatten().expand(channels) if scale.numel() == 1 else scale.flatten()
    if scales.numel() != channels:
        raise Inexpressible("scales along another dimension than that of the channels")
    x = in_units(writer, op.x, op.attrs.zero_point)
    bias = "" if op.bias is None else _numbers(writer, op.bias, scales, 0, 0)
    if isinstance(op, ops.Conv2dOp):
        return writer.node("Conv", x, _numbers(writer, op.weight, scales, 0, 0), bias, **window(op))
    if not isinstance(op, ops.LinearOp):
        raise Inexpressible("sums of integers; only those of conv2d and linear are written")
    if op.x.type.rank == 2:
        return writer.node("Gemm", x, _numbers(writer, op.weight, scales, 0, 0), bias, transB=1)
    weight = writer.node("Transpose", _numbers(writer, op.weight, scales, 0, 0), perm=[1, 0])
    product = writer.node("MatMul", x, weight)
    return writer.node("Add", product, bias) if bias else product
