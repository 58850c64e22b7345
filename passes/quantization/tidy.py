"""Fewer operations between integers: what a ``quantize`` does by itself need not be done before it.

Before::

    %3 = dequantize(%2, %scales)
    %4 = relu(%3)
    %5 = quantize(%4) {scale=0.05}

After::

    %3 = dequantize(%2, %scales / 0.05)
    %5 = quantize(%3) {scale=1.0}

- Bounds (``relu``, ``clamp``) that lie outside of the range of the integers are dropped: `quantize` saturates there.
- Where everything between is additions and ``relu``, the division by the scale is done to the constants that the
  numbers come from, once, instead of to each number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir import Graph, Op, Rewriter, TensorType, Value
from ...ir.ops import AddOp, ClampOp, DequantizeOp, FullOp, MulOp, QuantizeOp, ReluOp, WeightOp
from ...ir.ops.integers import integer_range
from ..matching import numbers, place_before, prune, scalar, weight_name
from .scheme import QuantizationStep

Leaf = tuple[Op, int]  # an op, and the place of its operand that is a constant: a factor, or a summand
_SUFFIX = "steps"  # of the ids of scales in units of the quantize that follows


def tidy(graph: Graph, rewriter: Rewriter, rule: str) -> None:
    """Apply both to every ``quantize`` of the graph."""
    for op in graph.ops:
        if isinstance(op, QuantizeOp):
            _drop_bounds(op, rewriter, rule)
            _fold_scale(op, rewriter, rule)


def _drop_bounds(op: QuantizeOp, rewriter: Rewriter, rule: str) -> None:
    while op.x.op is not None and op.x.has_one_use and _is_redundant(op.x.op, op) and rewriter.commit(rule, op):
        bound = op.x.op
        rewriter.set_operand(op, 0, bound.inputs[0])
        rewriter.erase(bound)


def _is_redundant(bound: Op, op: QuantizeOp) -> bool:
    """Whether the bounds become the outermost integers, or lie beyond them."""
    step = QuantizationStep(op.attrs.scale, op.attrs.zero_point, op.attrs.dtype)
    smallest, largest = integer_range(step.dtype)
    if isinstance(bound, ReluOp):
        return step.zero_point == smallest
    if not isinstance(bound, ClampOp):
        return False
    low, high = (max(min(one, 1e30), -1e30) for one in (bound.attrs.min, bound.attrs.max))  # they may be infinite
    return step.index_of(low) <= smallest and step.index_of(high) >= largest


def _fold_scale(op: QuantizeOp, rewriter: Rewriter, rule: str) -> None:
    leaves = leaves_of(op.x)
    if op.attrs.scale != 1 and leaves and rewriter.commit(rule, op):
        rescale(op, leaves, 1.0, rewriter)


def rescale(op: QuantizeOp, leaves: Sequence[Leaf], scale: float, rewriter: Rewriter) -> None:
    """Give a ``quantize`` another scale, and the scalings and constants that its operand is a sum of too."""
    divisor = op.attrs.scale / scale
    for leaf, index in leaves:
        old = leaf.inputs[index]
        number = scalar(old)
        if number is not None:
            fresh = rewriter.full(number / divisor, TensorType(old.shape))
        else:
            fresh = rewriter.weight((numbers(old).double() / divisor).float(), weight_name(old, _SUFFIX))
        place_before(rewriter, fresh.op, leaf)
        rewriter.set_operand(leaf, index, fresh)
        prune(rewriter, (old,))
    rewriter.update(op, replace(op.attrs, scale=scale))


def leaves_of(value: Value) -> list[Leaf] | None:
    """The scalings and constants that ``value`` is a sum of; None if it is something else, or is read elsewhere."""
    op = value.op
    if op is None or not value.has_one_use:
        return None
    if isinstance(op, DequantizeOp | MulOp):
        return [(op, 1)] if _is_number(op.inputs[1]) else None
    if not isinstance(op, AddOp | ReluOp):
        return None
    parts = [[(op, i)] if _is_number(operand) else leaves_of(operand) for i, operand in enumerate(op.inputs)]
    return None if None in parts else [leaf for part in parts if part is not None for leaf in part]


def _is_number(value: Value) -> bool:
    return isinstance(value.op, WeightOp | FullOp)
