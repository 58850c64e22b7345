"""The one way to change a graph inside a pass.

A rewrite first matches completely, then asks `Rewriter.commit` for permission, then changes the graph through the
rewriter. Permission is what makes bisection over single rewrites possible: past the limit all further ones are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from .core import Attrs, Op, Value
from .errors import IRError
from .graph import Graph
from .ops import FullOp, WeightOp
from .types import DType, TensorType

OpT = TypeVar("OpT", bound=Op)


@dataclass(frozen=True)
class Refusal:
    """Why a rewrite did not happen at an op that looked like its place."""

    rule: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} refused {self.op}: {self.reason}"


@dataclass
class RewriteLog:
    """What rewriters did; shared by all passes of a pipeline run.

    Attributes
    ----------
    applied
        ``"rule: op at location"`` of every committed rewrite, in order.
    refused
        Rewrites that did not happen, with reasons.
    limit
        Number of rewrites allowed, or None for all of them.
    """

    applied: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    limit: int | None = None


class Rewriter:
    """Changes one graph and keeps count.

    Parameters
    ----------
    graph
        The graph to change.
    log
        Where committed and refused rewrites are listed; a fresh log if omitted.
    """

    def __init__(self, graph: Graph, log: RewriteLog | None = None) -> None:
        self.graph = graph
        self.log = log if log is not None else RewriteLog()
        self.changed = False
        self._anchor: Op | None = None
        self._rule = ""

    def commit(self, rule: str, op: Op) -> bool:
        """Announce that ``rule`` has matched at ``op`` and is about to change the graph; False means: leave it alone.

        Ops made afterwards are placed before ``op``, and carry the rule's name and ``op``'s location.
        """
        if self.log.limit is not None and len(self.log.applied) >= self.log.limit:
            return False
        self.log.applied.append(f"{rule}: {op.describe()}")
        self.changed = True
        self._anchor, self._rule = op, rule
        return True

    def refuse(self, rule: str, op: Op, reason: str) -> Literal[False]:
        """Record why ``rule`` does not apply at ``op``; False, so that a rule can return what this returns."""
        self.log.refused.append(Refusal(rule, op.describe(), reason))
        return False

    # Making ops -----------------------------------------------------------------------------------------------

    def create(
        self,
        kind: type[OpT],
        operands: Sequence[Value | None],
        attrs: Attrs | None = None,
        *,
        body: Graph | None = None,
        location: str | None = None,
        after: bool = False,
        at: Op | None = None,
    ) -> OpT:
        """Make an op right before the committed one (or right ``after`` it), by default with its location.

        With ``at`` it is placed at that op instead.
        """
        anchor = self._committed()
        anchor = anchor if at is None else at
        location = anchor.location if location is None else location
        op = kind(tuple(operands), attrs, body=body, location=location, rule=self._rule)
        self.graph.insert(op, before=self.graph.following(anchor) if after else anchor)
        return op

    def weight(self, tensor: torch.Tensor, hint: str) -> Value:
        """Add a tensor to the weight store under a fresh id, and return the value of a new `WeightOp`."""
        id = self.graph.weights.add(tensor, hint)
        type = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
        return self.create(WeightOp, (), WeightOp.attrs_type(id=id, type=type)).result

    def full(self, value: float | int | bool, type: TensorType) -> Value:
        """The value of a new `FullOp`."""
        return self.create(FullOp, (), FullOp.attrs_type(value=value, shape=type.shape, dtype=type.dtype)).result

    # Changing the graph ---------------------------------------------------------------------------------------

    def replace(self, op: Op, values: Value | Sequence[Value]) -> None:
        """Make all readers of ``op``'s results read ``values`` instead, and remove ``op``."""
        self._committed()
        values = (values,) if isinstance(values, Value) else tuple(values)
        if [v.type.logical for v in values] != [r.type.logical for r in op.results]:
            raise op.error(f"cannot be replaced by values of other types: {', '.join(str(v.type) for v in values)}")
        for old, new in zip(op.results, values, strict=True):
            old.replace_uses(new)
        self.graph.remove(op)

    def erase(self, op: Op) -> None:
        """Remove an op whose results are not read."""
        self._committed()
        self.graph.remove(op)

    def set_operand(self, op: Op, index: int, value: Value | None) -> None:
        """Replace one operand of ``op``."""
        self._committed()
        op.set_operand(index, value)

    def set_output(self, index: int, value: Value) -> None:
        """Replace one output of the graph."""
        self._committed()
        self.graph.set_operand(index, value)

    def update(self, op: Op, attrs: Attrs) -> None:
        """Give ``op`` other attributes, and its results the types that follow from its attributes and operands.

        Extents may change by this: call it for all ops that read a changed result too, in execution order.
        """
        self._committed()
        op.attrs = attrs
        for result, type in zip(op.results, op.infer_types(), strict=True):
            result.type = type

    def set_layout(self, value: Value, channel_block: int) -> None:
        """Store ``value`` in another physical layout."""
        self._committed()
        value.type = value.type.with_layout(channel_block)

    def reorder(self, ops: Sequence[Op]) -> None:
        """Change the execution order."""
        self._committed()
        self.graph.reorder(ops)

    def _committed(self) -> Op:
        if self._anchor is None:
            raise IRError("a rewrite must call commit() before it changes the graph")
        return self._anchor


Rule = Callable[[Op, Rewriter], bool]


def apply_rules(rewriter: Rewriter, rules: Sequence[Rule], *, max_sweeps: int = 20) -> bool:
    """Apply directional rules to every op, in execution order, until none applies any more.

    A rule gets an op and the rewriter, and returns whether it changed the graph.

    Returns
    -------
    Whether a fixpoint was reached within ``max_sweeps`` sweeps.
    """
    for _ in range(max_sweeps):
        progress = False
        for op in rewriter.graph.ops:
            for rule in rules:
                if op.graph is not rewriter.graph:
                    break
                progress |= rule(op, rewriter)
        if not progress:
            return True
    return False
