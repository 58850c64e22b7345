"""Elementwise ops of two or three operands, with broadcasting as in NumPy and PyTorch."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..core import FunctionOp, Op, Operand
from ..traits import ChannelFlow, Narrowing, Storage
from ..types import DType, TensorType, broadcast_shapes


class ElementwiseOp(FunctionOp):
    """Base of the ops that compute each element of the result from one element of each operand."""

    elementwise = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.FOLLOWS
    default_narrowing = Narrowing.FOLLOWS

    def evaluate(self, *operands: torch.Tensor) -> torch.Tensor:
        return type(self).function(*operands)


class BinaryOp(ElementwiseOp):
    """Base of the elementwise ops of two operands of one element type; shapes are broadcast."""

    lhs = Operand()
    rhs = Operand()
    compares: ClassVar[bool] = False  # the result is boolean
    commutative: ClassVar[bool] = False

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.lhs.type.dtype is not self.rhs.type.dtype:
            raise self.error(
                f"operands must have one element type, got {self.lhs.type} and {self.rhs.type}; insert a cast"
            )
        shape = _broadcast(self, self.lhs.shape, self.rhs.shape)
        return (TensorType(shape, DType.BOOL if self.compares else self.lhs.type.dtype),)


def _broadcast(op: Op, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    shape = broadcast_shapes(*shapes)
    if shape is None:
        raise op.error(f"shapes {' and '.join(str(list(shape)) for shape in shapes)} do not broadcast")
    return shape


class FiniteBinaryOp(BinaryOp):
    """One that makes finite numbers of small finite numbers."""

    always_finite = True


class AddOp(FiniteBinaryOp, name="add", function=torch.add):
    """lhs + rhs."""

    commutative = True


class SubOp(FiniteBinaryOp, name="sub", function=torch.sub):
    """lhs - rhs."""


class MulOp(FiniteBinaryOp, name="mul", function=torch.mul):
    """lhs * rhs."""

    commutative = True


class MaximumOp(FiniteBinaryOp, name="maximum", function=torch.maximum):
    """The larger of the two; NaN if either is."""

    commutative = True


class MinimumOp(FiniteBinaryOp, name="minimum", function=torch.minimum):
    """The smaller of the two; NaN if either is."""

    commutative = True


class PowOp(BinaryOp, name="pow", function=torch.pow):
    """lhs raised to rhs."""


class FloatBinaryOp(BinaryOp):
    """Base of the binary ops that are defined on floating-point tensors only."""

    def infer_types(self) -> tuple[TensorType, ...]:
        if not self.lhs.type.dtype.is_floating:
            raise self.error(f"needs floating-point operands, got {self.lhs.type}; insert a cast")
        return super().infer_types()


class DivOp(FloatBinaryOp, name="div", function=torch.div):
    """lhs / rhs, floating point only (a frontend casts integers first)."""


class Atan2Op(FloatBinaryOp, name="atan2", function=torch.atan2):
    """The angle of the point (rhs, lhs)."""

    always_finite = True


class HypotOp(FloatBinaryOp, name="hypot", function=torch.hypot):
    """The length of the vector (lhs, rhs), without overflow on the way."""

    always_finite = True


class CopySignOp(FloatBinaryOp, name="copysign", function=torch.copysign):
    """The magnitude of lhs with the sign of rhs."""

    always_finite = True


class NextAfterOp(FloatBinaryOp, name="nextafter", function=torch.nextafter):
    """The number next to lhs in the direction of rhs."""

    default_narrowing = Narrowing.NEVER


class FmodOp(FloatBinaryOp, name="fmod", function=torch.fmod):
    """The remainder of the quotient that is rounded towards zero, exactly."""


class IntegerBinaryOp(BinaryOp):
    """Base of the binary ops that are defined on integers only."""

    always_finite = True
    default_narrowing = Narrowing.NEVER

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.lhs.type.dtype.is_floating or self.lhs.type.dtype is DType.BOOL:
            raise self.error(f"needs operands of integers, got {self.lhs.type}")
        return super().infer_types()


def _nonzero(divisor: torch.Tensor) -> torch.Tensor:
    return torch.where(divisor == 0, 1, divisor)


class QuotientOp(IntegerBinaryOp, name="quotient"):
    """The quotient, rounded towards zero; 0 where the divisor is 0, which PyTorch makes an error."""

    def evaluate(self, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
        return torch.where(rhs == 0, 0, torch.div(lhs, _nonzero(rhs), rounding_mode="trunc"))


class IntegerRemainderOp(IntegerBinaryOp, name="integer_remainder"):
    """lhs - quotient * rhs, which has the sign of lhs; lhs where the divisor is 0, which PyTorch makes an error."""

    def evaluate(self, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
        return torch.where(rhs == 0, lhs, torch.fmod(lhs, _nonzero(rhs)))


class BitAndOp(IntegerBinaryOp, name="bit_and", function=torch.bitwise_and):
    """The bits that both have."""

    commutative = True


class BitOrOp(IntegerBinaryOp, name="bit_or", function=torch.bitwise_or):
    """The bits that one of them has."""

    commutative = True


class BitXorOp(IntegerBinaryOp, name="bit_xor", function=torch.bitwise_xor):
    """The bits that just one of them has."""

    commutative = True


class ShiftLeftOp(IntegerBinaryOp, name="shift_left", function=torch.bitwise_left_shift):
    """lhs shifted by rhs bits to the left; 0 where rhs is negative or as large as the type's bits."""


class ShiftRightOp(IntegerBinaryOp, name="shift_right", function=torch.bitwise_right_shift):
    """lhs shifted by rhs bits to the right, its sign shifted in; all bits the sign where rhs leaves the type's bits."""


class ComparisonOp(BinaryOp):
    """Base of the ops whose result is boolean."""

    always_finite = True
    compares = True


class EqOp(ComparisonOp, name="eq", function=torch.eq):
    """lhs == rhs."""

    commutative = True


class NeOp(ComparisonOp, name="ne", function=torch.ne):
    """lhs != rhs."""

    commutative = True


class LtOp(ComparisonOp, name="lt", function=torch.lt):
    """lhs < rhs."""


class LeOp(ComparisonOp, name="le", function=torch.le):
    """lhs <= rhs."""


class GtOp(ComparisonOp, name="gt", function=torch.gt):
    """lhs > rhs."""


class GeOp(ComparisonOp, name="ge", function=torch.ge):
    """lhs >= rhs."""


class LogicalAndOp(ComparisonOp, name="logical_and", function=torch.logical_and):
    """Both are true (non-zero)."""

    commutative = True


class LogicalOrOp(ComparisonOp, name="logical_or", function=torch.logical_or):
    """At least one is true (non-zero)."""

    commutative = True


class WhereOp(ElementwiseOp, name="where"):
    """x where the condition holds, else y."""

    condition = Operand()
    x = Operand()
    y = Operand()
    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.condition.type.dtype is not DType.BOOL:
            raise self.error(f"the condition must be bool, got {self.condition.type}; insert a cast")
        if self.x.type.dtype is not self.y.type.dtype:
            raise self.error(
                f"both values must have one element type, got {self.x.type} and {self.y.type}; insert a cast"
            )
        shape = _broadcast(self, self.condition.shape, self.x.shape, self.y.shape)
        return (TensorType(shape, self.x.type.dtype),)

    def evaluate(self, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(condition, x, y)
