"""Reductions over a set of axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core import Attrs, FunctionOp, Op, Operand
from ..traits import ChannelFlow, Narrowing, OnIntegers, Storage
from ..types import DType, TensorType
from .integers import QUANTIZED, mean_of_sums, mean_type


@dataclass(frozen=True)
class ReduceAttrs(Attrs):
    """``axes`` count from the front, in ascending order; ``keepdim`` leaves them with extent 1."""

    axes: tuple[int, ...]
    keepdim: bool = False


class ReduceOp(FunctionOp):
    """Base of the reductions."""

    x = Operand()
    channels = ChannelFlow.REDUCE
    leads_group = True

    def infer_types(self) -> tuple[TensorType, ...]:
        x, axes = self.x.type, self.attrs.axes
        if not axes or list(axes) != sorted(set(axes)) or not (axes[0] >= 0 and axes[-1] < x.rank):
            raise self.error(f"axes {list(axes)} are not distinct ascending dimensions of {x}")
        if self.attrs.keepdim:
            return (x.with_shape(tuple(1 if axis in axes else extent for axis, extent in enumerate(x.shape))),)
        return (x.with_shape(tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).function(x, self.attrs.axes, keepdim=self.attrs.keepdim)

    def apart(self, index: int, axis: int) -> int | None:
        if axis in self.attrs.axes:
            return None
        return axis if self.attrs.keepdim else axis - sum(one < axis for one in self.attrs.axes)

    @property
    def storage(self) -> Storage:
        """Reductions of whole planes, such as global pooling, work on channel blocks too; of integers, means only."""
        pools = self.x.type.rank in (4, 5) and self.attrs.axes == tuple(range(2, self.x.type.rank))
        summable = self.x.type.dtype.is_floating or self.on_integers is OnIntegers.MEANS
        return Storage.FOLLOWS if pools and summable else Storage.PLAIN


class MeanOp(ReduceOp, name="mean", attrs=ReduceAttrs, function=torch.mean):
    """Arithmetic mean; f32 for 8-bit integers: the exact sum times the f32 reciprocal of the count."""

    linear = True
    on_integers = OnIntegers.MEANS
    default_narrowing = Narrowing.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        (result,) = super().infer_types()
        return (result.with_dtype(mean_type(self, self.x.type, self._terms)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        if self.x.type.dtype not in QUANTIZED:
            return super().evaluate(x)
        return mean_of_sums(x.sum(self.attrs.axes, keepdim=self.attrs.keepdim, dtype=torch.int64), self._terms)

    @property
    def _terms(self) -> int:
        """Elements of one sum."""
        return math.prod(self.x.shape[axis] for axis in self.attrs.axes)


class SumOp(ReduceOp, name="sum", attrs=ReduceAttrs):
    """Sum, in the operand's element type."""

    linear = True

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x, self.attrs.axes, keepdim=self.attrs.keepdim, dtype=x.dtype)


class MaxOp(ReduceOp, name="reduce_max", attrs=ReduceAttrs, function=torch.amax):
    """Largest element."""


class MinOp(ReduceOp, name="reduce_min", attrs=ReduceAttrs, function=torch.amin):
    """Smallest element."""


class MaxMagnitudeOp(ReduceOp, name="max_magnitude", attrs=ReduceAttrs):
    """Largest magnitude of an element, f32."""

    storage = Op.storage  # row-major

    def infer_types(self) -> tuple[TensorType, ...]:
        if self.x.type.dtype is not DType.F32:
            raise self.error(f"needs an f32 operand, got {self.x.type}")
        return super().infer_types()

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.amax(x.abs(), self.attrs.axes, keepdim=self.attrs.keepdim)


class ProdOp(ReduceOp, name="prod", attrs=ReduceAttrs):
    """Product, in the operand's element type."""

    storage = Op.storage  # row-major

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        for axis in reversed(self.attrs.axes):
            x = torch.prod(x, axis, keepdim=self.attrs.keepdim, dtype=x.dtype)
        return x


@dataclass(frozen=True)
class ArgumentAttrs(Attrs):
    """``axis`` counts from the front; ``keepdim`` leaves it with extent 1."""

    axis: int
    keepdim: bool = False


class ArgumentOp(FunctionOp):
    """Base of the ops that find where along one axis the first extreme element is, as i64; NaN is extreme."""

    x = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        x, axis = self.x.type, self.attrs.axis
        if not 0 <= axis < x.rank or not x.shape[axis]:
            raise self.error(f"axis {axis} of {x} has no elements")
        kept = (1,) if self.attrs.keepdim else ()
        return (TensorType((*x.shape[:axis], *kept, *x.shape[axis + 1 :]), DType.I64),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        numbers = x.to(torch.uint8) if x.dtype is torch.bool else x
        return type(self).function(numbers, self.attrs.axis, keepdim=self.attrs.keepdim)

    def apart(self, index: int, axis: int) -> int | None:
        if axis == self.attrs.axis:
            return None
        return axis - (axis > self.attrs.axis and not self.attrs.keepdim)


class ArgMaxOp(ArgumentOp, name="argmax", attrs=ArgumentAttrs, function=torch.argmax):
    """Where the first largest element is; NaN counts as the largest."""


class ArgMinOp(ArgumentOp, name="argmin", attrs=ArgumentAttrs, function=torch.argmin):
    """Where the first smallest element is; NaN counts as the smallest."""
