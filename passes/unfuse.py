"""Take fused groups apart, for passes that look at single ops and fuse again afterwards.

Before::

    %3 = fused(%x, %w, %b) body @conv2d_relu(%x, %w, %b) { ... }

After::

    %1 = conv2d(%x, %w, %b)
    %2 = relu(%1)
"""

from __future__ import annotations

from ..ir import Graph, Rewriter, Value
from ..ir.ops import FusedOp


def take_apart(graph: Graph, rewriter: Rewriter, rule: str) -> bool:
    """Put the ops of all fused groups back into the graph; returns whether there were any."""
    groups = [op for op in graph.ops if isinstance(op, FusedOp)]
    for group in groups:
        if rewriter.commit(rule, group):
            _take_apart(group, rewriter)
    return bool(groups)


def _take_apart(group: FusedOp, rewriter: Rewriter) -> None:
    assert group.body is not None  # guaranteed by FusedOp.infer_types
    mapping: dict[Value, Value] = dict(zip(group.body.inputs, group.inputs, strict=True))
    for op in group.body.ops:
        operands = [None if value is None else mapping[value] for value in op.operands]
        copy = rewriter.create(type(op), operands, op.attrs, location=op.location)
        mapping.update(zip(op.results, copy.results, strict=True))
    rewriter.replace(group, [mapping[value] for value in group.body.outputs])
