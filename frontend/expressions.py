"""Arithmetic on values of the graph, written as on numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import DType, Op, Value
from ..ir import ops as ir_ops
from .context import Context, Number


@dataclass(frozen=True)
class Expression:
    """A value; operators emit ops. Numbers are taken in the element type of the value beside them."""

    ctx: Context
    value: Value

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self.value.type.dtype

    def apply(self, kind: type[Op], *others: Expression | Number) -> Expression:
        """The op on this value and others."""
        operands = (one.value if isinstance(one, Expression) else self.ctx.operand(one, self.dtype) for one in others)
        return Expression(self.ctx, self.ctx.emit(kind, self.value, *operands))

    def cast(self, dtype: DType) -> Expression:
        """The same numbers in another element type."""
        return Expression(self.ctx, self.ctx.cast(self.value, dtype))

    def number(self, number: Number) -> Expression:
        """A number in this element type."""
        return Expression(self.ctx, self.ctx.operand(number, self.dtype))

    def choose(self, x: Expression, y: Expression | Number) -> Expression:
        """``x`` where this, a boolean, is true, else ``y``."""
        other = y if isinstance(y, Expression) else x.number(y)
        return Expression(self.ctx, self.ctx.emit(ir_ops.WhereOp, self.value, x.value, other.value))

    def polynomial(self, coefficients: Sequence[float]) -> Expression:
        """By Horner's scheme, the highest power first."""
        result = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            result = result * self + coefficient
        return result

    def __add__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.AddOp, other)

    def __sub__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.SubOp, other)

    def __rsub__(self, other: Number) -> Expression:
        return self.number(other) - self

    def __mul__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.MulOp, other)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.DivOp, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return self.number(other) / self

    def __neg__(self) -> Expression:
        return self.apply(ir_ops.NegOp)

    def __abs__(self) -> Expression:
        return self.apply(ir_ops.AbsOp)

    def __lt__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.LtOp, other)

    def __le__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.LeOp, other)

    def __gt__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.GtOp, other)

    def __ge__(self, other: Expression | Number) -> Expression:
        return self.apply(ir_ops.GeOp, other)

    def __and__(self, other: Expression) -> Expression:
        return self.apply(ir_ops.LogicalAndOp, other)

    def __or__(self, other: Expression) -> Expression:
        return self.apply(ir_ops.LogicalOrOp, other)

    def equals(self, other: Expression | Number) -> Expression:
        """Where both are equal."""
        return self.apply(ir_ops.EqOp, other)

    def differs(self, other: Expression | Number) -> Expression:
        """Where they are not equal; NaN differs from everything."""
        return self.apply(ir_ops.NeOp, other)
