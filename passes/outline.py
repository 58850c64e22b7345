"""Make one `FusedOp` of a group of ops; what the passes ``fuse-epilogue`` and ``fuse-elementwise`` have in common.

No value inside of a group is read outside of it, so a group has one result, computed where its last op stood. Then no
cycle can arise: a path out of the group and back into it would have to start at the last op, and everything that
depends on that comes later.

Numbers of the model (``full`` of rank 0) are copied into the body; weights and all else are operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..ir import Graph, Op, Rewriter, Value, clone_op
from ..ir.ops import FloatUnaryOp, FullOp, FusedOp, PowOp
from .matching import prune

_MAX_NAME = 60  # characters of a body's name
_MOST_WORK = 128  # of a group of elementwise ops: longer chains become several kernels, of which each compiles quickly
_MOST_EPILOGUE = 64  # of the ops that follow an anchor, whose code is repeated for every vector of a register tile
_FUNCTION = 8  # what the code of an activation or an elementary function counts; sums and products count 1


@dataclass(eq=False)
class FusionGroup:
    """Ops that become one kernel; all results have ``shape``, and only the last op's is read outside."""

    shape: tuple[int, ...]
    members: list[Op] = field(default_factory=list)
    anchor: Op | None = None

    def has_room_for(self, ops: Sequence[Op]) -> bool:
        """Whether the kernel's code stays small with further ops."""
        most = _MOST_WORK if self.anchor is None else _MOST_EPILOGUE
        return sum(_FUNCTION if isinstance(op, FloatUnaryOp | PowOp) else 1 for op in (*self.members, *ops)) <= most


def is_fusible(op: Op) -> bool:
    """Whether ``op`` can be part of a group without being its anchor."""
    return op.elementwise and len(op.results) == 1


def home_of(op: Op, group_of: dict[Op, FusionGroup]) -> FusionGroup | None:
    """The group that ``op`` can join: the one that all its readers are in, of its shape, not read by the anchor.

    A group that is full takes no more.
    """
    readers = op.result.users
    homes = {group_of.get(reader) for reader in readers}
    home = homes.pop() if len(homes) == 1 and not op.result.is_output else None
    if home is None or home.shape != op.result.shape or home.anchor in readers or not home.has_room_for([op]):
        return None
    return home


def outline_groups(groups: list[FusionGroup], rule: str, rewriter: Rewriter) -> None:
    """Replace each group of two ops or more by one `FusedOp` where the last of them stood."""
    position = {op: index for index, op in enumerate(rewriter.graph.ops)}
    for group in groups:
        members = sorted(group.members, key=position.__getitem__)
        if len(members) > 1 and rewriter.commit(rule, members[-1]):
            _outline(members, group.anchor, rewriter)


def _outline(members: list[Op], anchor: Op | None, rewriter: Rewriter) -> None:
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
