"""Layers: biases become operands, matrix products take their simplest form.

==================================  ==========================================================
bias-operand                        conv2d(x, w) + b -> conv2d(x, w, b) for a constant b per output channel; linear too
transpose-operand                   matmul(a, transpose(b)) -> matmul(a, b) {transpose_rhs}
matmul-to-linear                    matmul(x, w) with a constant matrix w -> linear(x, transpose(w))
==================================  ==========================================================
"""

from __future__ import annotations

from ...ir import Op, Rewriter, Value, is_constant
from ...ir.ops import AddOp, LayerOp, LinearOp, MatmulOp, PermuteOp, WeightOp
from ...ir.ops.integers import QUANTIZED
from ..matching import become, bias_name, numbers, part_name, replace, tensor, weight_name


def bias_operand(op: Op, rewriter: Rewriter) -> bool:
    """conv2d(x, w) + b -> conv2d(x, w, b)."""
    if not isinstance(op, AddOp) or not isinstance(op.lhs.op, LayerOp) or not is_constant(op.rhs):
        return False
    layer, addend = op.lhs.op, op.rhs
    reason = _bias_refusal(op, layer, addend)
    if reason:
        return rewriter.refuse("bias-operand", op, reason)
    channels = layer.weight.shape[0]
    bias = numbers(addend).double().reshape(-1).expand(channels)
    if layer.bias is not None:
        bias = bias + numbers(layer.bias).double()
    if not rewriter.commit("bias-operand", op):
        return False
    # A bf16 layer may have a more precise bias; it stays as precise.
    dtype = (layer.bias or layer.result).type.dtype
    name = weight_name(addend, "bias") if layer.bias is None else bias_name(layer, "summed")
    operands = (layer.x, layer.weight, rewriter.weight(bias.to(dtype.torch), name))
    replace(rewriter, op, rewriter.create(type(layer), operands, layer.attrs, location=layer.location).result)
    return True


def transpose_operand(op: Op, rewriter: Rewriter) -> bool:
    """matmul(a, transpose(b)) -> matmul(a, b) {transpose_rhs}; transposing twice cancels."""
    if not isinstance(op, MatmulOp) or not isinstance(op.rhs.op, PermuteOp):
        return False
    permute = op.rhs.op
    *leading, last = range(permute.x.type.rank)
    if permute.attrs.dims != (*leading[:-1], last, leading[-1]):
        return False
    attrs = MatmulOp.attrs_type(transpose_rhs=not op.attrs.transpose_rhs)
    return become("transpose-operand", op, rewriter, MatmulOp, (op.lhs, permute.x), attrs)


def matmul_to_linear(op: Op, rewriter: Rewriter) -> bool:
    """matmul(x, w) with a constant matrix w -> linear(x, transpose(w))."""
    if not isinstance(op, MatmulOp) or not isinstance(op.rhs.op, WeightOp) or op.rhs.type.rank != 2:
        return False
    if is_constant(op.lhs):
        return False  # fold-constants evaluates it
    if op.lhs.type.dtype in QUANTIZED:
        return rewriter.refuse("matmul-to-linear", op, "linear layers sum products of 8-bit integers in i32")
    matrix = op.rhs
    if not op.attrs.transpose_rhs and tensor(matrix) is None:
        return rewriter.refuse("matmul-to-linear", op, "the weights are not loaded")
    if not rewriter.commit("matmul-to-linear", op):
        return False
    if not op.attrs.transpose_rhs:
        matrix = rewriter.weight(numbers(matrix).t(), part_name(matrix, "transposed"))
    replace(rewriter, op, rewriter.create(LinearOp, (op.lhs, matrix)).result)
    return True


def _bias_refusal(op: AddOp, layer: LayerOp, addend: Value) -> str:
    """Why the addend cannot become the bias; empty if it can."""
    channels = layer.weight.shape[0]
    trailing = layer.weight.type.rank - 2
    shape = addend.shape
    axis = len(shape) - 1 - trailing  # of the addend's dimension that meets the channels
    others = shape[:axis] + shape[axis + 1 :] if axis >= 0 else shape
    if any(extent != 1 for extent in others) or (axis >= 0 and shape[axis] not in (1, channels)):
        return f"{addend.type} is not one number per output channel"
    if op.result.type.logical != layer.result.type.logical:
        return "the sum has another shape than the layer's result"
    if not layer.result.has_one_use:
        return "the layer's result is read elsewhere too"
    if not layer.result.type.dtype.is_floating:
        return "integer layers accumulate in another type"
    if tensor(addend) is None or (layer.bias is not None and tensor(layer.bias) is None):
        return "the bias is not constant, or the weights are not loaded"
    return ""


RULES = (bias_operand, transpose_operand, matmul_to_linear)
