"""Fold batch normalisation into the layer before it.

Before::

    %1 = conv2d(%x, %weight, %bias)
    %2 = batch_norm(%1, %mean, %variance, %gamma, %beta)

After::

    %2 = conv2d(%x, %weight..folded, %bias..folded)

In inference, batch normalisation is an affine map per channel: with ``scale = gamma / sqrt(variance + eps)``,

    y = (W x + b - mean) * scale + beta = (scale W) x + ((b - mean) * scale + beta)

so that the layer's output channels are scaled and its bias is shifted (Jacob et al. 2018, section 3.2). Output channels
are dimension 0 of the weight for plain, grouped and depthwise convolutions and for linear layers alike. Everything is
computed in float64 and rounded once.

Refused when a parameter is not constant or not loaded, when the layer's result is read elsewhere, when a linear layer's
features are not dimension 1, or when a folded number is not finite. A batch normalisation that cannot go into a layer
becomes a multiplication and an addition per channel, which fuse with their neighbours; parameters that are NaN or
infinite stay so.
"""

from __future__ import annotations

import torch

from ..ir import Graph, Rewriter
from ..ir.ops import AddOp, BatchNormOp, LayerOp, LinearOp, MulOp
from .base import Exactness, Pass, PassContext, Result
from .matching import bias_name, numbers, replace, tensor, weight_name
from .registry import register_pass

_RULE = "fold-batchnorm"
_AFFINE_RULE = "batchnorm-to-affine"


@register_pass(_RULE, purpose="simplify")
class FoldBatchNorm(Pass):
    """Fold batch normalisation into the convolution or linear layer before it, else into a scale and a shift."""

    exactness = Exactness.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for op in graph.ops:
            if not isinstance(op, BatchNormOp):
                continue
            if any(tensor(value) is None for value in op.inputs[1:]):
                rewriter.refuse(_RULE, op, "a parameter is not constant, or the weights are not loaded")
                continue
            fold_into_layer(op, rewriter) or _make_affine(op, rewriter)
        return Result(rewriter.changed)


def fold_into_layer(op: BatchNormOp, rewriter: Rewriter) -> LayerOp | None:
    """Fold a batch normalisation with constant parameters; returns the layer with the new weights, None if refused."""
    layer = op.x.op
    if not isinstance(layer, LayerOp):
        return None
    reason = fold_refusal(op, layer)
    if reason:
        rewriter.refuse(_RULE, op, reason)
        return None
    scale, shift = _affine(op)
    original = numbers(layer.weight)
    weight = original.double() * scale.reshape(-1, *[1] * (layer.weight.type.rank - 1))
    bias = shift if layer.bias is None else numbers(layer.bias).double() * scale + shift
    weight = weight.to(original.dtype)
    bias = bias.to((layer.bias or layer.weight).type.dtype.torch)  # a bf16 layer may have a more precise bias
    if not _same_finiteness(weight, original) or not bool(bias.isfinite().all()):
        rewriter.refuse(_RULE, op, "a folded weight or bias is not finite")
        return None
    if not rewriter.commit(_RULE, op):
        return None
    operands = (
        layer.x,
        rewriter.weight(weight, weight_name(layer.weight, "folded")),
        rewriter.weight(bias, bias_name(layer, "folded")),
    )
    folded = rewriter.create(type(layer), operands, layer.attrs, location=layer.location)
    replace(rewriter, op, folded.result)
    return folded


def _make_affine(op: BatchNormOp, rewriter: Rewriter) -> bool:
    """batch_norm(x) -> x * scale + shift, with parameters of shape [C, 1, ...]."""
    exact = _affine(op)
    scale, shift = rounded = tuple(part.to(op.x.type.dtype.torch) for part in exact)
    # PyTorch computes scale and shift in float32 or better: what is not finite there is the model's own result.
    if not all(_same_finiteness(part, known.float()) for part, known in zip(rounded, exact, strict=True)):
        return rewriter.refuse(_AFFINE_RULE, op, "a scale or shift would become infinite")
    if not rewriter.commit(_AFFINE_RULE, op):
        return False
    shape = (-1, *[1] * (op.x.type.rank - 2))
    name = op.location or "batch_norm"
    scaled = rewriter.create(MulOp, (op.x, rewriter.weight(scale.reshape(shape), f"{name}.scale")))
    shifted = rewriter.create(AddOp, (scaled.result, rewriter.weight(shift.reshape(shape), f"{name}.shift")))
    replace(rewriter, op, shifted.result)
    return True


def fold_refusal(op: BatchNormOp, layer: LayerOp) -> str:
    """Why the batch normalisation cannot go into ``layer``; empty if it can."""
    if not layer.result.has_one_use:
        return "the layer's result is read elsewhere too"
    if tensor(layer.weight) is None or (layer.bias is not None and tensor(layer.bias) is None):
        return "the layer's weights are not constant, or not loaded"
    if isinstance(layer, LinearOp) and layer.result.type.rank != 2:
        return "the linear layer's features are not the channels that are normalised"
    return ""


def _affine(op: BatchNormOp) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift per channel, in float64."""
    mean, variance = numbers(op.mean).double(), numbers(op.variance).double()
    scale = torch.rsqrt(variance + op.attrs.eps)
    if op.gamma is not None:
        scale = scale * numbers(op.gamma).double()
    shift = -mean * scale
    return scale, shift if op.beta is None else shift + numbers(op.beta).double()


def _same_finiteness(folded: torch.Tensor, original: torch.Tensor) -> bool:
    """Whether folding made no finite number infinite or NaN."""
    return bool(folded.isfinite().all()) or bool((folded.isfinite() | ~original.isfinite()).all())
