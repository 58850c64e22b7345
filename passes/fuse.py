"""Fuse a producer with its elementwise consumers into one group, which becomes one kernel.

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
2. Each elementwise op that is left, the last first, joins the group that all its readers are in, if it has that
   group's shape and its reader is not the anchor; else it starts a group of its own.

No value inside of a group is read outside of it, so a group has one result, computed where its last op stood. Then no
cycle can arise: a path out of the group and back into it would have to start at the last op, and everything that
depends on that comes later.

Numbers of the model (``full`` of rank 0) are copied into the body; weights and all else are operands. A group of one op
stays as it is, and so do relayouts, which are not elementwise in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx

from ..ir import Graph, Op, Rewriter, Value, clone_op, dataflow, post_dominators
from ..ir.ops import (
    AdaptiveAvgPool2dOp,
    AttentionOp,
    AvgPool2dOp,
    Conv2dOp,
    FullOp,
    FusedOp,
    LayerNormOp,
    LinearOp,
    MatmulOp,
    MaxPool2dOp,
    ReduceOp,
    SoftmaxOp,
)
from .base import Pass, PassContext, Result
from .matching import prune
from .registry import register_pass

ANCHORS = (
    Conv2dOp,
    LinearOp,
    MatmulOp,
    AttentionOp,
    MaxPool2dOp,
    AvgPool2dOp,
    AdaptiveAvgPool2dOp,
    ReduceOp,
    SoftmaxOp,
    LayerNormOp,
)
_MAX_NAME = 60  # characters of a body's name


@register_pass("fuse")
@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse producers with their elementwise consumers, residual additions included."""

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        position = {op: index for index, op in enumerate(graph.ops)}
        for group in _find_groups(graph):
            members = sorted(group.members, key=position.__getitem__)
            if len(members) > 1 and rewriter.commit("fuse", members[-1]):
                _outline(members, group.anchor, rewriter)
        return Result(rewriter.changed)


@dataclass(eq=False)
class _Group:
    """Ops that become one kernel; all results have ``shape``, and only the last op's is read outside."""

    shape: tuple[int, ...]
    members: list[Op] = field(default_factory=list)
    anchor: Op | None = None


def _find_groups(graph: Graph) -> list[_Group]:
    flow = dataflow(graph)
    dominators = post_dominators(graph)
    group_of: dict[Op, _Group] = {}
    groups: list[_Group] = []
    for anchor in reversed(graph.ops):
        if not isinstance(anchor, ANCHORS):
            continue
        group = _Group(anchor.result.shape, [anchor], anchor)
        groups.append(group)
        group_of[anchor] = group
        sink: Op = anchor
        while (step := _next_step(sink, group, flow, dominators, group_of)) is not None:
            sink = step[-1]
            group.members.extend(step)
            group_of.update(dict.fromkeys(step, group))
    for op in reversed(graph.ops):
        if op in group_of or not _is_fusible(op):
            continue
        readers = op.result.users
        homes = {group_of.get(reader) for reader in readers}
        home = homes.pop() if len(homes) == 1 and not op.result.is_output else None
        if home is None or home.shape != op.result.shape or home.anchor in readers:
            home = _Group(op.result.shape)
            groups.append(home)
        home.members.append(op)
        group_of[op] = home
    return groups


def _next_step(
    sink: Op,
    group: _Group,
    flow: networkx.DiGraph,
    dominators: dict[Op, Op | str],
    group_of: dict[Op, _Group],
) -> list[Op] | None:
    """The ops from ``sink`` (exclusive) to its post-dominator (inclusive, last), or None if they cannot all join."""
    end = dominators.get(sink)
    if not isinstance(end, Op):
        return None
    step = [end]
    if set(flow.successors(sink)) != {end}:
        between = networkx.descendants(flow, sink) & networkx.ancestors(flow, end)
        step = [*between, end]
    readers = {user for op in (sink, *step[:-1]) for user in flow.successors(op)}
    if not readers <= set(step):  # a dead op reads a value of the group
        return None
    fits = all(_is_fusible(op) and op not in group_of and op.result.shape == group.shape for op in step)
    return step if fits else None


def _is_fusible(op: Op) -> bool:
    return op.elementwise and len(op.results) == 1


def _outline(members: list[Op], anchor: Op | None, rewriter: Rewriter) -> None:
    """Replace ``members``, given in execution order, by one `FusedOp` where the last of them stood."""
    inside = set(members)
    outer = tuple(dict.fromkeys(value for op in members for value in op.inputs if value.op not in inside))
    numbers = [value for value in outer if isinstance(value.op, FullOp) and not value.shape]
    operands = [value for value in outer if value not in numbers]
    name = "_".join(op.name for op in members)[:_MAX_NAME]
    body = Graph(name, [(value.name or f"arg{index}", value.type) for index, value in enumerate(operands)])
    mapping: dict[Value, Value] = dict(zip(operands, body.inputs, strict=True))
    for op in (*(value.op for value in numbers if value.op is not None), *members):
        body.append(clone_op(op, mapping))
    last = members[-1]
    body.outputs = (mapping[last.result],)
    fused = rewriter.create(FusedOp, operands, body=body, location=(anchor or last).location)
    fused.result.type = last.result.type
    rewriter.replace(last, fused.result)
    for op in reversed(members[:-1]):
        rewriter.erase(op)
    prune(rewriter, tuple(numbers))
