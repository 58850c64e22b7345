"""``fuse-elementwise``: fuse elementwise ops that follow one another into one group, which becomes one kernel.

Before::

    %1 = sigmoid(%x)
    %2 = mul(%x, %1)

After::

    %2 = fused(%x) body @sigmoid_mul(%x) {
      %0 = sigmoid(%x)
      %1 = mul(%x, %0)
      return %1
    }

Each elementwise op, the last first, joins the group that all its readers are in if it has that group's shape, or else
starts one of its own. Run ``fuse-epilogue`` before: an op that fuses with a layer costs nothing, one in a group of its
own still reads and writes memory.
"""

from __future__ import annotations

from ..ir import Graph, Op
from .base import Pass, PassContext, Result
from .outline import FusionGroup, home_of, is_fusible, outline_groups
from .registry import register_pass


@register_pass("fuse-elementwise", purpose="fuse")
class FuseElementwise(Pass):
    """Fuse chains and trees of elementwise ops."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        outline_groups(_find_groups(graph), self.name, rewriter)
        return Result(rewriter.changed)


def _find_groups(graph: Graph) -> list[FusionGroup]:
    group_of: dict[Op, FusionGroup] = {}
    groups: list[FusionGroup] = []
    for op in reversed(graph.ops):
        if not is_fusible(op):
            continue
        home = home_of(op, group_of)
        if home is None:
            home = FusionGroup(op.result.shape)
            groups.append(home)
        home.members.append(op)
        group_of[op] = home
    return groups
