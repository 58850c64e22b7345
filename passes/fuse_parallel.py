"""Join layers that read one value into a wider layer, whose result is sliced.

Before::

    %1 = linear(%x, %wq, %bq)                     # [M, K] times [N1, K]
    %2 = linear(%x, %wk, %bk)                     # [M, K] times [N2, K]

After::

    %0 = linear(%x, %w, %b)                       # weights and biases one below the other: [N1 + N2, K]
    %1 = slice(%0) {axis=1, start=0, stop=N1}
    %2 = slice(%0) {axis=1, start=N1, stop=N1+N2}

A matrix product with more columns reads its left side once and keeps the machine busier: the projections of attention,
the reductions of an Inception block (Jia et al. 2019, "Optimizing DNN computation with relaxed graph substitutions").
Convolutions must agree in window, stride, padding and dilation. Unary elementwise ops that follow all of the layers
alike move before the slices, so that they still fuse.

It refuses where the slices would cost what it saves:

- channels that are not whole blocks of 16, or several images: a slice of a blocked tensor would be copied;
- a slice of a linear layer that someone reads who needs contiguous rows (only attention and matmul take strides);
- an elementwise op that would have fused into one of the layers alone;
- a convolution that a concatenation reads, since it writes straight into the concatenated buffer.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ..ir import Graph, Op, Rewriter, Value
from ..ir.ops import (
    AttentionOp,
    ConcatOp,
    ExpandOp,
    LayerOp,
    LinearOp,
    MatmulOp,
    PermuteOp,
    ReshapeOp,
    SliceOp,
)
from .base import Exactness, Pass, PassContext, Result
from .matching import numbers, part_name, prune, tensor
from .registry import register_pass

_CHANNEL_QUANTUM = 16  # the widest channel block of any target in float32: slices at multiples of it fit every block


@register_pass("fuse-parallel", purpose="fuse")
class FuseParallel(Pass):
    """Join sibling convolutions or linear layers into one wider layer."""

    exactness = Exactness.CLOSE  # kernels for wider layers may sum in another order

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        for value in (*graph.inputs, *(result for op in graph.ops for result in op.results)):
            for siblings in _siblings(value).values():
                fitting = [layer for layer in siblings if _fits(layer, rewriter)]
                _join(fitting, rewriter)
        return Result(rewriter.changed)


def _siblings(value: Value) -> dict[Hashable, list[LayerOp]]:
    """Layers whose data is ``value``, grouped by what they must have in common; groups of one are left out."""
    groups: dict[Hashable, list[LayerOp]] = {}
    for user in value.users:
        if isinstance(user, LayerOp) and user.x is value:
            key = (type(user), user.attrs, user.weight.shape[1:], user.weight.type.dtype)
            groups.setdefault(key, []).append(user)
    return {key: layers for key, layers in groups.items() if len(layers) > 1}


def _fits(layer: LayerOp, rewriter: Rewriter) -> bool:
    reason = _refusal(layer)
    return not reason or rewriter.refuse("fuse-parallel", layer, reason)


def _refusal(layer: LayerOp) -> str:
    """Why the layer cannot be part of a wider one; empty if it can."""
    if tensor(layer.weight) is None or (layer.bias is not None and tensor(layer.bias) is None):
        return "its weights are not constant, or not loaded"
    result = _chain(layer)[-1].result
    if any(user.elementwise for user in result.users):
        return "an elementwise op fuses into this layer alone"
    if isinstance(layer, LinearOp):
        return "" if _takes_strides(result) else "a reader of its result needs contiguous rows"
    if layer.attrs.groups != 1:
        return f"it has {layer.attrs.groups} groups"
    if layer.x.shape[0] != 1 or layer.weight.shape[0] % _CHANNEL_QUANTUM:
        return f"slices of {layer.result.type} would be copied"
    if any(isinstance(user, ConcatOp) for user in result.users):
        return "it writes straight into a concatenation"
    return ""


def _chain(layer: LayerOp) -> list[Op]:
    """The layer and the unary elementwise ops that follow it, each the only reader of the one before."""
    chain: list[Op] = [layer]
    while chain[-1].result.has_one_use and not chain[-1].result.is_output:
        (user,) = chain[-1].result.users
        if not user.elementwise or len(user.operands) != 1 or user.result.type != layer.result.type:
            break
        chain.append(user)
    return chain


def _takes_strides(value: Value) -> bool:
    """Whether all readers can read ``value`` through strides, after further views."""
    return not value.is_output and all(
        isinstance(user, AttentionOp | MatmulOp)
        or (isinstance(user, ReshapeOp | PermuteOp | SliceOp | ExpandOp) and _takes_strides(user.result))
        for user in value.users
    )


def _join(layers: list[LayerOp], rewriter: Rewriter) -> None:
    if len(layers) < 2:
        return
    chains = [_chain(layer) for layer in layers]
    if len({tuple((type(op), op.attrs) for op in chain[1:]) for chain in chains}) != 1:
        rewriter.refuse("fuse-parallel", layers[0], "different elementwise ops follow its siblings")
        return
    first = min(layers, key=rewriter.graph.ops.index)
    if not rewriter.commit("fuse-parallel", first):
        return
    weight = rewriter.weight(torch.cat([numbers(layer.weight) for layer in layers]), part_name(first.weight, "joined"))
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = rewriter.weight(torch.cat([_bias(layer) for layer in layers]), part_name(first.weight, "joined_bias"))
    joined: Op = rewriter.create(type(first), (first.x, weight, bias), first.attrs)
    for op in chains[0][1:]:
        joined = rewriter.create(type(op), (joined.result,), op.attrs, location=op.location)
    axis = first.channel_axis % joined.result.type.rank
    parts, start = [], 0
    for layer in layers:
        stop = start + layer.weight.shape[0]
        attrs = SliceOp.attrs_type(axis=axis, start=start, stop=stop)
        parts.append(rewriter.create(SliceOp, (joined.result,), attrs, location=layer.location).result)
        start = stop
    for chain, part in zip(chains, parts, strict=True):
        constants = chain[0].inputs[1:]
        rewriter.replace(chain[-1], part)
        for op in reversed(chain[:-1]):
            rewriter.erase(op)
        prune(rewriter, constants)


def _bias(layer: LayerOp) -> torch.Tensor:
    return numbers(layer.bias) if layer.bias is not None else numbers(layer.weight).new_zeros(layer.weight.shape[0])
