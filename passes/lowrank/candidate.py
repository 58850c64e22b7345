"""Layers that can be factorized: a constant float32 weight, and nothing in the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...ir import DType, Graph, Op, Value, is_constant
from ...ir.ops import Conv2dOp, LayerOp, LinearOp, WeightOp
from ..matching import numbers
from .methods import Factorization, Ranks


@dataclass(frozen=True)
class Candidate:
    """A weight and the layers that read it.

    Attributes
    ----------
    layers
        All layers that read the weight and can be replaced.
    factors
        The weight, to be cut at any ranks.
    """

    layers: tuple[LayerOp, ...]
    factors: Factorization

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the layers as they are."""
        return sum(op.macs() for op in self.layers)

    def macs_at(self, ranks: Ranks) -> int:
        """Multiply-adds of what replaces them."""
        return sum(self.factors.macs(op, ranks) for op in self.layers)


def find_candidates(graph: Graph, method: type[Factorization]) -> tuple[list[Candidate], list[tuple[LayerOp, str]]]:
    """What ``method`` can factorize in a graph without fused ops, in execution order, and what it cannot, and why."""
    layers: dict[str, list[LayerOp]] = {}
    refused: list[tuple[LayerOp, str]] = []
    for op in graph.ops:
        if not isinstance(op, LayerOp):
            continue
        reason = _refusal(op) or method.refusal(op)
        if reason:
            refused.append((op, reason))
        else:
            layers.setdefault(op.weight.op.attrs.id, []).append(op)
    found = [Candidate(tuple(ops), method(numbers(ops[0].weight).double())) for ops in layers.values()]
    return found, refused


def _refusal(op: LayerOp) -> str:
    """Why no method applies; empty if one may."""
    if not isinstance(op, Conv2dOp | LinearOp):
        return "only convolutions and linear layers have factors"
    if op.result.type.dtype is not DType.F32:
        return f"it computes in {op.result.type.dtype.value}; factorize before changing element types"
    if not isinstance(op.weight.op, WeightOp):
        return "its weight is no constant"
    if is_constant(op.x) or (op.bias is not None and not is_constant(op.bias)):
        return "its operand is a constant, or its bias is none"
    if isinstance(op, Conv2dOp) and op.attrs.groups > 1:
        return f"it has {op.attrs.groups} groups"
    if not bool(numbers(op.weight).isfinite().all()):
        return "its weight has numbers that are not finite"
    neighbour = _linear_neighbour(op)
    if neighbour is not None:
        return f"nothing lies between it and {neighbour.describe()}, so these are factors of one layer already"
    return ""


def _linear_neighbour(op: LayerOp) -> Op | None:
    """The layer right before or after ``op`` with which it makes a product of two weights."""
    before = op.x.op if op.x.has_one_use else None
    after = op.result.users[0] if op.result.has_one_use and op.result.users else None
    if _is_factor(before, op, op.x):
        return before
    return after if _is_factor(after, op, op.result) else None


def _is_factor(other: Op | None, op: LayerOp, between: Value) -> bool:
    """Whether ``other`` is a layer of the same kind, which makes or reads the value between them as its data."""
    if not isinstance(other, type(op)) or (isinstance(other, Conv2dOp) and other.attrs.groups > 1):
        return False
    is_data = other.result is between or (other.x is between and other.weight is not between)
    return is_data and isinstance(other.weight.op, WeightOp)
