"""What matrix products of computed operands have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import Attrs, Op, Value
from ..traits import Narrowing, OnIntegers
from .integers import QUANTIZED


class ProductOp(Op):
    """Base of the ops that multiply computed operands, their *factors*, which all have one element type.

    On factors of 8-bit integers, the result is exact i32 sums, or f32 numbers; either is to be multiplied by one number
    more, the unit.
    """

    leads_group = True
    default_narrowing = Narrowing.LEADS
    on_integers = OnIntegers.PRODUCTS

    @property
    def factors(self) -> tuple[Value, ...]:
        """The operands that are multiplied."""
        return self.inputs[: self.wide_operands]

    @property
    def terms(self) -> int:
        """Products in its longest sum."""
        raise NotImplementedError

    @property
    def narrowing(self) -> Narrowing:
        return Narrowing.NEVER if self.inputs[0].type.dtype in QUANTIZED else self.default_narrowing

    def on_steps(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[Attrs, float]:
        """Attributes on integers that stand for numbers, ``scale * (q - zero_point)`` for each factor; and the unit."""
        raise NotImplementedError

    def on_numbers(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[Attrs, float] | None:
        """`on_steps` undone: attributes on those numbers, and the unit; None if the zero points are others."""
        raise NotImplementedError
