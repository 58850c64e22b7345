"""Weights of which single numbers may become zero: those of layers, shared ones once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ...ir import Graph, Op, Rewriter, Value
from ...ir.ops import LayerOp, WeightOp
from ..matching import prune, weight_name
from ..sensitivity import name_of_layer
from .patterns import ZeroPattern

ZEROED = "zeroed"  # of the ids of weights


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A weight and the layers that multiply by it.

    Attributes
    ----------
    id
        Of the weight.
    layers
        All layers that read it, in execution order.
    numbers
        The weight itself.
    """

    id: str
    layers: tuple[LayerOp, ...]
    numbers: torch.Tensor

    @property
    def name(self) -> str:
        """Of the first layer."""
        return name_of_layer(self.layers[0])

    @cached_property
    def zeros(self) -> int:
        """How many numbers are zero already."""
        return self.numbers.numel() - int(self.numbers.count_nonzero())


def find_weights(graph: Graph, pattern: ZeroPattern) -> tuple[list[LayerWeight], list[tuple[Op, str]]]:
    """Weights in which zeros may be put, of a graph without fused ops; and the layers in which not, with reasons."""
    layers: dict[str, list[LayerOp]] = {}
    refused: list[tuple[Op, str]] = []
    for op in graph.ops:
        if not isinstance(op, LayerOp):
            continue
        reason = _refusal(op) or pattern.refusal(op)
        if reason:
            refused.append((op, reason))
        else:
            layers.setdefault(op.weight.op.attrs.id, []).append(op)
    return [LayerWeight(id, tuple(ops), graph.weights[id]) for id, ops in layers.items()], refused


def _refusal(op: LayerOp) -> str:
    """Why no number of a layer's weight may become zero; empty if it may."""
    if not isinstance(op.weight.op, WeightOp):
        return "its weight is no constant"
    if not op.weight.type.dtype.is_floating:
        return f"its weight is {op.weight.type.dtype.value}; put zeros into it before it is quantized"
    if not bool(op.weight.op.evaluate().isfinite().all()):
        return "its weight has numbers that are not finite"
    return ""


def put_numbers(layers: Sequence[LayerOp], numbers: torch.Tensor, rewriter: Rewriter) -> Value:
    """Let some layers that share a weight multiply by other numbers; returns these."""
    old = layers[0].weight
    made = rewriter.weight(numbers, weight_name(old, ZEROED))
    before = tuple(dict.fromkeys(op.weight for op in layers))
    for op in layers:
        rewriter.set_operand(op, 1, made)
    prune(rewriter, before)
    return made
