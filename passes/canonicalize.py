"""Bring a graph into one of its many equivalent forms: the simplest, so that later passes have fewer cases.

Before::

    %1 = pad(%x) {before=[0,0,1,1], after=[0,0,1,1]}
    %2 = conv2d(%1, %w)
    %3 = maximum(%2, %zero)
    %4 = minimum(%3, %six)

After::

    %1 = conv2d(%x, %w) {padding=[1,1,1,1]}
    %2 = clamp(%1) {min=0.0, max=6.0}

Each rule is directional; together they run until none applies. The rules and their algebra are listed in
`tersor.passes.rules`. A rule refuses, with a reason, where the equality does not hold: a padding that is not zeros,
windows of unequal size, a cast that rounds, a value that is read elsewhere. The approach is MLIR's canonicalizer
(https://mlir.llvm.org/docs/Canonicalization/).
"""

from __future__ import annotations

from ..ir import Graph, apply_rules
from .base import Exactness, Pass, PassContext, Result
from .registry import register_pass
from .rules import RULES


@register_pass("canonicalize", purpose="simplify")
class Canonicalize(Pass):
    """Remove no-ops, merge chains, and rewrite equivalent forms into one.

    Attributes
    ----------
    max_sweeps
        Sweeps over the graph before it gives up on a fixpoint, which the report then tells.
    """

    max_sweeps: int = 20
    exactness = Exactness.CLOSE  # a bias is added inside of the product's sum, means are reassociated

    def __post_init__(self) -> None:
        if self.max_sweeps < 1:
            raise ValueError(f"max_sweeps must be positive, not {self.max_sweeps}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        settled = apply_rules(rewriter, RULES, max_sweeps=self.max_sweeps)
        notes = () if settled else (f"no fixpoint after {self.max_sweeps} sweeps",)
        return Result(rewriter.changed, notes)
