"""Compute in bf16: half the memory traffic, and the matrix units of recent processors.

Before::

    %1 = conv2d(%x, %weight, %bias)           : f32[1,64,56,56]
    %2 = relu(%1)                             : f32[1,64,56,56]

After::

    %1 = cast(%x) {dtype=bf16}                : bf16[1,64,56,56]
    %2 = conv2d(%1, %weight.bf16, %bias)      : bf16[1,64,56,56]
    %3 = relu(%2)                             : bf16[1,64,56,56]
    %4 = cast(%3) {dtype=f32}                 : f32[1,64,56,56]

A bf16 number is the upper half of a float32: the same range, 8 bits of precision. Convolutions, linear layers, matrix
products and attention are converted wherever they are; elementwise ops, pooling, normalisation, means and data movement
only where an operand is bf16 already, so that what stands between two converted ops stays in bf16. Sums are accumulated
in float32 and rounded once; biases and parameters of normalisations stay float32, and so do the graph's inputs and
outputs.

Groups made by ``fuse`` are taken apart first and fused again afterwards, so that ``O3,to-bf16`` and ``O2,to-bf16,fuse``
are the same.

Refused for weights that are not loaded, for constants beyond the range of bf16, and after ``layout``. The report tells
how far the outputs are from those of the float32 graph, on the calibration batches or on seeded random inputs. Method:
Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..ir import DType, Graph, Op, Rewriter, TensorType, Value
from ..ir.ops import (
    AttentionOp,
    AvgPool2dOp,
    CastOp,
    ConcatOp,
    Conv2dOp,
    ExpandOp,
    FullOp,
    FusedOp,
    LayerNormOp,
    LinearOp,
    MatmulOp,
    MaxPool2dOp,
    MeanOp,
    PadOp,
    PermuteOp,
    RelayoutOp,
    ReshapeOp,
    SliceOp,
    SoftmaxOp,
    WeightOp,
)
from .base import Exactness, Pass, PassContext, Result
from .fuse import Fuse
from .matching import numbers, prune, tensor, weight_name
from .numeric import largest_deviation, seeded_inputs
from .registry import register_pass
from .unfuse import take_apart

_RULE = "to-bf16"
_COMPUTE = (Conv2dOp, LinearOp, MatmulOp, AttentionOp)
_FOLLOW = (
    MaxPool2dOp,
    AvgPool2dOp,
    MeanOp,
    SoftmaxOp,
    LayerNormOp,
    ConcatOp,
    PadOp,
    ReshapeOp,
    PermuteOp,
    SliceOp,
    ExpandOp,
)
# Operands from this one on keep their element type: biases, parameters of a normalisation, masks.
_KEPT_OPERANDS: dict[type[Op], int] = {Conv2dOp: 2, LinearOp: 2, LayerNormOp: 1, AttentionOp: 3}


@register_pass(_RULE)
@dataclass(frozen=True)
class ToBf16(Pass):
    """Compute convolutions, matrix products and what stands between them in bf16, accumulating in float32."""

    exactness = Exactness.APPROXIMATE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            rewriter.refuse(_RULE, graph.ops[0], "layouts are chosen already; run to-bf16 before layout")
            return Result(False)
        bodies = [op.body for op in graph.ops if isinstance(op, FusedOp) and op.body is not None]
        parts = [graph, *bodies]
        if not any(_is_float_compute(op) for part in parts for op in part.ops):
            return Result(False)
        original = graph.clone()
        fused = take_apart(graph, rewriter, _RULE)
        converted = sum(_convert(op, rewriter) for op in graph.ops)
        if fused:
            Fuse().run(graph, context)
        if not converted:
            return Result(rewriter.changed)
        batches = [seeded_inputs(original)] if context.calibration is None else context.calibration
        error = largest_deviation(original, graph, batches)
        return Result(True, (f"{converted} ops in bf16; {error}" if error else f"{converted} ops in bf16",))


def _convert(op: Op, rewriter: Rewriter) -> bool:
    """Replace ``op`` by casts, the same op on bf16, and a cast back."""
    if not _is_candidate(op):
        return False
    reason = _refusal(op)
    if reason:
        rewriter.refuse(_RULE, op, reason)
        return False
    if not rewriter.commit(_RULE, op):
        return False
    kept = _KEPT_OPERANDS.get(type(op), len(op.operands))
    operands = [_as_bf16(v, rewriter) if index < kept else v for index, v in enumerate(op.operands)]
    result = rewriter.create(type(op), operands, op.attrs, location=op.location).result
    _replace(op, result, rewriter)
    return True


def _is_float_compute(op: Op) -> bool:
    """Whether this is one of the ops that make converting worth while, still in float32."""
    return isinstance(op, _COMPUTE) and op.result.type.dtype is DType.F32


def _is_candidate(op: Op) -> bool:
    """Whether ``op`` is one to convert, now that everything before it is done."""
    if len(op.results) != 1 or op.result.type.dtype is not DType.F32 or not op.inputs or isinstance(op, CastOp):
        return False
    if isinstance(op, _COMPUTE):
        return True
    follows = op.elementwise or isinstance(op, _FOLLOW)
    return follows and any(_bf16_source(value) is not None for value in op.inputs)


def _refusal(op: Op) -> str:
    """Why ``op`` cannot be converted; empty if it can."""
    for value in op.inputs:
        if isinstance(value.op, WeightOp) and tensor(value) is None:
            return "a weight is not loaded"
        if isinstance(value.op, FullOp) and not _fits(value.op.attrs.value):
            return f"the constant {value.op.attrs.value} is beyond the range of bf16"
    return ""


def _fits(number: float | int | bool) -> bool:
    return math.isinf(number) or not torch.tensor(float(number), dtype=torch.bfloat16).isinf().item()


def _as_bf16(value: Value | None, rewriter: Rewriter) -> Value | None:
    """The bf16 form of an operand; what is not float32 stays as it is."""
    if value is None or value.type.dtype is not DType.F32:
        return value
    source = _bf16_source(value)
    if source is not None:
        return source
    if isinstance(value.op, FullOp):
        return rewriter.full(value.op.attrs.value, TensorType(value.shape, DType.BF16))
    if isinstance(value.op, WeightOp):
        return rewriter.weight(numbers(value).to(torch.bfloat16), weight_name(value, "bf16"))
    made = (user for user in value.users if isinstance(user, CastOp) and user.attrs.dtype is DType.BF16)
    earlier = next(made, None)
    if earlier is not None:
        return earlier.result
    return rewriter.create(CastOp, (value,), CastOp.attrs_type(dtype=DType.BF16)).result


def _bf16_source(value: Value) -> Value | None:
    """The bf16 value that ``value`` is widened from, if it is."""
    op = value.op
    if isinstance(op, CastOp) and op.attrs.dtype is DType.F32 and op.x.type.dtype is DType.BF16:
        return op.x
    return None


def _replace(op: Op, rounded: Value, rewriter: Rewriter) -> None:
    """Let readers of ``op`` read ``rounded``, widened again; remove the op and operands that nothing reads any more."""
    operands = op.inputs
    rewriter.replace(op, rewriter.create(CastOp, (rounded,), CastOp.attrs_type(dtype=DType.F32)).result)
    prune(rewriter, operands)
