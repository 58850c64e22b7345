"""A kernel's view of the graph: one op or one fused group, split into its anchor and its epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ...ir import Op, Value
from ...ir.ops import FullOp, FusedOp

OpT = TypeVar("OpT", bound=Op)


@dataclass(frozen=True)
class Group:
    """What one kernel computes.

    Attributes
    ----------
    op
        The op of the graph: a bare op or a `FusedOp`.
    anchor
        The op that decides the template; None when the group is purely elementwise.
    epilogue
        The elementwise ops that follow, in execution order; ops of the body for a fused group.
    bindings
        For a fused group, the graph's value behind each input of the body.
    """

    op: Op
    anchor: Op | None
    epilogue: tuple[Op, ...]
    bindings: dict[Value, Value]

    @classmethod
    def of(cls, op: Op) -> Group:
        """Split ``op``."""
        if not isinstance(op, FusedOp) or op.body is None:
            return cls(op, None, (op,), {}) if op.elementwise else cls(op, op, (), {})
        bindings = dict(zip(op.body.inputs, op.inputs, strict=True))
        epilogue = tuple(inner for inner in op.body.ops if inner is not op.anchor)
        return cls(op, op.anchor, epilogue, bindings)

    def outer(self, value: Value) -> Value:
        """The graph's value behind a value that an op of the group reads."""
        return self.bindings.get(value, value)

    def anchor_as(self, kind: type[OpT]) -> OpT:
        """The anchor, which is registered to be of this kind."""
        assert isinstance(self.anchor, kind)
        return self.anchor

    def operand(self, index: int) -> Value:
        """The graph's value that the anchor reads as operand ``index``, which it always has."""
        value = self.anchor_operand(index)
        assert value is not None
        return value

    def anchor_operand(self, index: int) -> Value | None:
        """The graph's value that the anchor reads as operand ``index``; None if it is missing."""
        assert self.anchor is not None
        operand = self.anchor.operands[index] if index < len(self.anchor.operands) else None
        return None if operand is None else self.outer(operand)

    @property
    def result(self) -> Value:
        """The one value that the kernel writes."""
        return self.op.result

    @property
    def computed(self) -> Value:
        """The value inside the group that ends up in `result`."""
        if isinstance(self.op, FusedOp) and self.op.body is not None:
            return self.op.body.outputs[0]
        return self.op.result

    @property
    def tables(self) -> frozenset[Value]:
        """Those of `epilogue_operands` of which each element of the result may need any number."""
        return frozenset(self.outer(op.inputs[index]) for op in self.epilogue for index in op.whole_operands)

    @property
    def epilogue_operands(self) -> tuple[Value, ...]:
        """The graph's values that the epilogue reads, each once; what a `FullOp` inside the body fills in is none."""
        inside = {result for op in (*self.epilogue, *((self.anchor,) if self.anchor else ())) for result in op.results}
        return tuple(
            dict.fromkeys(
                self.outer(value)
                for op in self.epilogue
                if not isinstance(op, FullOp)
                for value in op.inputs
                if value not in inside
            )
        )
