"""Write ops that have no kernel as ops that have one.

Before::

    %1 = softmax(%x) {axis=1}                     : f32[1,8,100]

After::

    %1 = permute(%x) {dims=[0,2,1]}               : f32[1,100,8]
    %2 = softmax(%1) {axis=2}                     : f32[1,100,8]
    %3 = permute(%2) {dims=[0,2,1]}               : f32[1,8,100]

The rules are those of `tersor.passes.rules.decompose`, which `canonicalize` applies among its own. This pass is for
pipelines without it: code generation needs what it does, so it runs before every pipeline.
"""

from __future__ import annotations

from ..ir import Graph, apply_rules
from .base import Exactness, Pass, PassContext, Result
from .registry import register_pass
from .rules import decompose


@register_pass("decompose", purpose="simplify")
class Decompose(Pass):
    """Write ops without a kernel of their own as ops that have one."""

    exactness = Exactness.CLOSE

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        apply_rules(rewriter, decompose.RULES, max_sweeps=len(decompose.RULES) + 1)
        return Result(rewriter.changed)
