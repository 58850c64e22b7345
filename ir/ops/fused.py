"""A fused group: one op that holds a small graph, compiled into one kernel."""

from __future__ import annotations

import torch

from ..core import Op, Operand
from ..types import TensorType


class FusedOp(Op, name="fused"):
    """A group of ops that becomes one kernel: operands are bound to the body's inputs, results are the body's outputs.

    The body holds at most one op that is not elementwise, its anchor; the others form its epilogue. Weights are
    operands, so that a body needs no weight store.
    """

    parts = Operand(variadic=True)

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.body is None:
            raise self.error("has no body")
        expected = [value.type.logical for value in self.body.inputs]
        actual = [value.type.logical for value in self.inputs]
        if expected != actual:
            raise self.error(
                f"body takes ({', '.join(map(str, expected))}), operands are ({', '.join(map(str, actual))})"
            )
        return tuple(value.type.logical for value in self.body.outputs)

    @property
    def anchor(self) -> Op | None:
        """The op that decides which kernel template is used; None for a purely elementwise group."""
        return next((op for op in self.body.ops if not op.elementwise and op.inputs), None) if self.body else None

    def evaluate(self, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from ..interpreter import evaluate

        assert self.body is not None  # guaranteed by infer_types
        return evaluate(self.body, operands)

    def macs(self) -> int:
        return self.body.cost().macs if self.body else 0
