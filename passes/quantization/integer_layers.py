"""``integer-layers``: layers whose operands stand for integers sum the integers.

Models that other tools quantized (`frontend/converters/quantization.py`, ONNX's QuantizeLinear and DequantizeLinear)
say where numbers are rounded to integers, and compute in floating point between. Before::

    %1 = dequantize(%q, %s) {zero_point=100}                  : f32[1,64,56,56]
    %2 = dequantize(%w.i8, %w.scales)                         : f32[64,64,3,3]
    %3 = dequantize(%b.i32, %b.scales)                        : f32[64]
    %4 = conv2d(%1, %2, %3)                                   : f32[1,64,56,56]
    %5 = quantize(relu(%4)) {scale=0.02}                      : u8[1,64,56,56]

After::

    %1 = conv2d(%q, %w.i8, %b.i32) {zero_point=100}           : i32[1,64,56,56]
    %2 = dequantize(%1, %w.scales * s / 0.02)                 : f32[1,64,56,56]
    %3 = quantize(%2) {scale=1.0}                             : u8[1,64,56,56]

No number is chosen here: weights, scales and zero points are the model's. Ops that move or average integers do so (the
trait `on_integers`); what needs floating-point numbers gets a ``dequantize`` of its own, in registers. A bias that is
no whole number of the sums' units is added to the numbers that the sums stand for, so the layer is equal in real
arithmetic. Before a ``quantize``, a number on the very edge between two integers may become either.

A layer stays in floating point where its weight has zero points other than 0, has scales along another dimension than
that of the new channels, or is computed; and where sums may not fit into i32.
"""

from __future__ import annotations

from ...ir import Graph, Rewriter, is_constant
from ...ir.ops import DequantizeOp, LayerOp, LinearOp, MatmulOp, PermuteOp, RelayoutOp
from ...ir.ops.integers import QUANTIZED
from ..base import Exactness, Pass, PassContext, Result
from ..matching import replace
from ..registry import register_pass
from .given_integers import given_integers, given_layer, given_refusal
from .integer_graph import IntegerGraph
from .placement import float_layers
from .tidy import tidy

_RULE = "integer-layers"


@register_pass(_RULE, purpose="quantize")
class IntegerLayers(Pass):
    """Sum integers in the layers of models that came with integer weights and activations."""

    exactness = Exactness.CLOSE  # sums are exact instead of rounded; scales are multiplied in another order

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(isinstance(op, DequantizeOp) and not is_constant(op.x) for op in graph.ops):
            return Result(False)
        if context.target is not None and not context.target.integer_kernels:
            return Result(False, (f"{context.target.name} has no kernels for 8-bit integers",))
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            return Result(False, ("layouts are chosen already",))
        rewriter = context.rewriter(graph)
        _products_as_layers(graph, rewriter)
        layers = [op for op in float_layers(graph) if _has_given_weight(op) and not _refused(op, rewriter)]
        IntegerGraph(rewriter, _RULE, layers, given_layer).build()
        tidy(graph, rewriter, _RULE)
        summing = sum(1 for op in graph.ops if isinstance(op, LayerOp) and op.x.type.dtype in QUANTIZED)
        return Result(rewriter.changed, (f"{summing} layers sum integers",))


def _products_as_layers(graph: Graph, rewriter: Rewriter) -> None:
    """matmul(x, w) with a dequantized constant matrix w -> linear(x, transpose(w))."""
    for op in graph.ops:
        if not isinstance(op, MatmulOp) or op.rhs.type.rank != 2 or given_integers(op.rhs) is None:
            continue
        if not rewriter.commit(_RULE, op):
            continue
        matrix = op.rhs
        if not op.attrs.transpose_rhs:
            matrix = rewriter.create(PermuteOp, (matrix,), PermuteOp.attrs_type(dims=(1, 0))).result
        replace(rewriter, op, rewriter.create(LinearOp, (op.lhs, matrix)).result)


def _has_given_weight(op: LayerOp) -> bool:
    """Whether the weight is made of integers, as the operand may be."""
    source = op.weight
    while source.op is not None and source.op.inputs and not isinstance(source.op, DequantizeOp):
        source = source.op.inputs[0]
    return isinstance(source.op, DequantizeOp)


def _refused(op: LayerOp, rewriter: Rewriter) -> bool:
    reason = given_refusal(op)
    if reason:
        rewriter.refuse(_RULE, op, reason)
    return bool(reason)
