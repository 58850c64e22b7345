"""Common subexpression elimination: compute equal values once.

Before::

    %1 = add(%x, %y)
    %2 = add(%y, %x)
    %3 = mul(%1, %2)

After::

    %1 = add(%x, %y)
    %3 = mul(%1, %1)

Two ops are equal when kind, attributes, result types and operands are; the order of the operands of a commutative op
does not count. Weights are equal when their contents are, whatever their ids. Fused groups are left alone: they are
formed afterwards. The method is value numbering (Cocke and Schwartz 1970), which for a flat graph is one sweep in
execution order.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..ir import Graph, Op, Value, WeightStore
from ..ir.ops import BinaryOp, WeightOp
from .base import Pass, PassContext, Result
from .registry import register_pass


@register_pass("cse", purpose="simplify")
class CommonSubexpressionElimination(Pass):
    """Compute equal values once; weights are compared by content."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        numbers: dict[Value, int] = {value: number for number, value in enumerate(graph.inputs)}
        first: dict[Hashable, Op] = {}
        for op in graph.ops:
            earlier = first.setdefault(_key(op, numbers, graph.weights), op) if op.body is None else op
            if earlier is not op and rewriter.commit("common-subexpression", op):
                rewriter.replace(op, earlier.results)
                continue
            for value in op.results:
                numbers[value] = len(numbers)
        return Result(rewriter.changed)


def _key(op: Op, numbers: dict[Value, int], weights: WeightStore) -> Hashable:
    types = tuple(str(value.type) for value in op.results)
    if isinstance(op, WeightOp):
        id = op.attrs.id
        return (op.name, weights.digest(id) if id in weights else id, types)
    operands = [-1 if value is None else numbers[value] for value in op.operands]
    if isinstance(op, BinaryOp) and op.commutative:
        operands.sort()
    return (op.name, repr(op.attrs), types, tuple(operands))  # repr tells -0.0 from 0.0
