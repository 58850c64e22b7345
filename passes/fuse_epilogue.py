"""``fuse-epilogue``: fuse a producer with the elementwise ops behind it into one group, which becomes one kernel.

Before::

    %1 = conv2d(%x, %w, %b)
    %2 = add(%1, %x)
    %3 = relu(%2)

After::

    %3 = fused(%x, %w, %b) body @conv2d_add_relu(%x, %w, %b) {
      %0 = conv2d(%x, %w, %b)
      %1 = add(%0, %x)
      %2 = relu(%1)
      return %2
    }

Groups are found in two steps, on the original ops, before anything changes.

1. From each anchor (convolution, matrix product, attention, pooling, reduction, softmax, normalisation), the latest in
   execution order first, the group grows to the anchor's post-dominator as long as all paths to it are elementwise ops
   of the anchor's result shape; then to the post-dominator of that, and so on (Chen et al. 2018, "TVM", section 3).
   Where an addition joins two convolutions it so goes to the later one, whose result is still in registers; the other
   is read from memory.
2. Elementwise ops that only feed a group, the last first, join it: a gate that is multiplied with a convolution, say.

A group of one op stays as it is, and so do relayouts, which are not elementwise in memory.
"""

from __future__ import annotations

import networkx

from ..ir import Graph, Op, dataflow, post_dominators
from ..ir.ops import LookupOp, QuantizeOp
from .base import Pass, PassContext, Result
from .outline import FusionGroup, home_of, is_fusible, outline_groups
from .registry import register_pass


@register_pass("fuse-epilogue", purpose="fuse")
class FuseEpilogue(Pass):
    """Fuse layers with the elementwise ops behind them, residual additions included."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        outline_groups(_find_groups(graph), self.name, rewriter)
        return Result(rewriter.changed)


def _find_groups(graph: Graph) -> list[FusionGroup]:
    flow = dataflow(graph)
    dominators = post_dominators(graph)
    group_of: dict[Op, FusionGroup] = {}
    groups: list[FusionGroup] = []
    for anchor in reversed(graph.ops):
        if not anchor.leads_group:
            continue
        group = FusionGroup(anchor.result.shape, [anchor], anchor)
        groups.append(group)
        group_of[anchor] = group
        sink: Op = anchor
        while (step := _next_step(sink, group, flow, dominators, group_of)) is not None:
            sink = step[-1]
            group.members.extend(step)
            group_of.update(dict.fromkeys(step, group))
    for op in reversed(graph.ops):
        home = home_of(op, group_of) if op not in group_of and is_fusible(op) else None
        if home is not None:
            home.members.append(op)
            group_of[op] = home
    return groups


def _next_step(
    sink: Op,
    group: FusionGroup,
    flow: networkx.DiGraph,
    dominators: dict[Op, Op | str],
    group_of: dict[Op, FusionGroup],
) -> list[Op] | None:
    """The ops from ``sink`` (exclusive) to its post-dominator (inclusive, last), or None if they cannot all join.

    A group ends with a ``quantize``: what reads its result, which is a quarter as large, does so from memory. Only a
    function of the integers may follow.
    """
    end = dominators.get(sink)
    if not isinstance(end, Op) or (isinstance(sink, QuantizeOp | LookupOp) and not isinstance(end, LookupOp)):
        return None
    between: dict[Op, None] = {}
    waiting = [sink]
    while waiting:
        readers = set(flow.successors(waiting.pop())) - {end}
        for op in readers - between.keys():
            # All paths to an output lead to `end`: an op from which none does is dead, and so is a last one.
            if not _may_join(op, group, group_of) or not flow.out_degree(op):
                return None
            between[op] = None
            waiting.append(op)
    step = [*between, end]
    return step if _may_join(end, group, group_of) and group.has_room_for(step) else None


def _may_join(op: Op, group: FusionGroup, group_of: dict[Op, FusionGroup]) -> bool:
    return is_fusible(op) and op not in group_of and op.result.shape == group.shape
