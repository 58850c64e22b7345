"""Running totals along an axis, sorting, and looking up in what is sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import Attrs, Op, Operand
from ..types import DType, TensorType
from .data_movement import AxisAttrs


class ScanOp(Op):
    """Base of the ops whose element ``i`` along an axis is made of the operand's elements up to ``i``."""

    x = Operand()
    function: ClassVar[Callable[[torch.Tensor, int], torch.Tensor]]

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if not 0 <= self.attrs.axis < x.rank:
            raise self.error(f"axis {self.attrs.axis} is no dimension of {x}")
        return (x.logical,)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).function(x, self.attrs.axis).to(x.dtype)

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == self.attrs.axis else axis


class CumSumOp(ScanOp, name="cumsum", attrs=AxisAttrs):
    """Sums; those of f32 are added up in f64, as in PyTorch."""

    linear = True
    function = torch.cumsum


class CumProdOp(ScanOp, name="cumprod", attrs=AxisAttrs):
    """Products; those of f32 are multiplied in f64, as in PyTorch."""

    function = torch.cumprod


class LogCumSumExpOp(ScanOp, name="logcumsumexp", attrs=AxisAttrs):
    """Logarithms of sums of exponentials, of floating-point numbers."""

    function = torch.logcumsumexp

    def infer_types(self) -> tuple[TensorType, ...]:
        if not self.x.type.dtype.is_floating:
            raise self.error(f"needs a floating-point operand, got {self.x.type}; insert a cast")
        return super().infer_types()


class CumMaxOp(ScanOp, name="cummax", attrs=AxisAttrs):
    """The largest so far; NaN from the first NaN on."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cummax(x, self.attrs.axis).values


class CumMinOp(ScanOp, name="cummin", attrs=AxisAttrs):
    """The smallest so far; NaN from the first NaN on."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cummin(x, self.attrs.axis).values


class ScanArgumentOp(ScanOp):
    """Base of the ops that say where the extremum so far was last."""

    def infer_types(self) -> tuple[TensorType, ...]:
        (result,) = super().infer_types()
        return (result.with_dtype(DType.I64),)


class ArgCumMaxOp(ScanArgumentOp, name="argcummax", attrs=AxisAttrs):
    """Where the largest element so far is, the last of several."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cummax(x, self.attrs.axis).indices


class ArgCumMinOp(ScanArgumentOp, name="argcummin", attrs=AxisAttrs):
    """Where the smallest element so far is, the last of several."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cummin(x, self.attrs.axis).indices


@dataclass(frozen=True)
class SortAttrs(Attrs):
    """The first ``count`` elements along ``axis`` are wanted, the smallest first or, if ``descending``, the largest."""

    axis: int
    count: int
    descending: bool = False


class SortOp(Op, name="sort", attrs=SortAttrs):
    """Elements along an axis in order, NaN as the largest."""

    x = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        x, attrs = self.x.type, self.attrs
        if not 0 <= attrs.axis < x.rank or not 1 <= attrs.count <= x.shape[attrs.axis]:
            raise self.error(f"{attrs} does not fit {x}")
        return (x.with_shape((*x.shape[: attrs.axis], attrs.count, *x.shape[attrs.axis + 1 :])),)

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == self.attrs.axis else axis

    def _sorted(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        attrs = self.attrs
        found = torch.sort(x, dim=attrs.axis, descending=attrs.descending, stable=True)
        return tuple(one.narrow(attrs.axis, 0, attrs.count) for one in found)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return self._sorted(x)[0]


class ArgSortOp(SortOp, name="argsort", attrs=SortAttrs):
    """Where the elements in order are; of equal ones, the first comes first."""

    def infer_types(self) -> tuple[TensorType, ...]:
        (result,) = super().infer_types()
        return (result.with_dtype(DType.I64),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return self._sorted(x)[1]


@dataclass(frozen=True)
class SearchAttrs(Attrs):
    """``right`` counts elements that are equal to the number, too."""

    right: bool = False


class SearchOp(Op, name="search", attrs=SearchAttrs):
    """How many elements of sorted rows [..., N] are smaller than each number of rows [..., M] -> i64 [..., M].

    All numbers are looked up in the one row, where there is only one of rank 1.
    """

    rows = Operand()
    numbers = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        rows, numbers = self.rows.type, self.numbers.type
        fits = rows.rank == 1 or (rows.rank == numbers.rank and rows.shape[:-1] == numbers.shape[:-1])
        if rows.dtype is not numbers.dtype or not rows.rank or not fits:
            raise self.error(f"needs rows [..., N] and numbers [..., M] of one element type, got {rows} and {numbers}")
        return (numbers.with_dtype(DType.I64),)

    def evaluate(self, rows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(rows.contiguous(), numbers.contiguous(), right=self.attrs.right)

    def apart(self, index: int, axis: int) -> int | None:
        return axis if axis < self.inputs[index].type.rank - 1 else None
