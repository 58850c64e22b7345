"""Dead code elimination: remove ops that no output depends on.

Before::

    %1 = relu(%x)
    %2 = sigmoid(%x)
    return %1

After::

    %1 = relu(%x)
    return %1

Ops of the IR have no side effects, so whatever no output reaches back to is dead. Inputs of the graph stay: they are
its interface.
"""

from __future__ import annotations

from ..ir import Graph, live_ops
from .base import Pass, PassContext, Result
from .registry import register_pass


@register_pass("dce", purpose="simplify")
class DeadCodeElimination(Pass):
    """Remove ops that no output depends on."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        live = live_ops(graph)
        for op in reversed(graph.ops):  # readers first
            if op not in live and rewriter.commit("dead-op", op):
                rewriter.erase(op)
        return Result(rewriter.changed)
