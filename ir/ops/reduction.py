"""Reductions over a set of axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import Attrs, Op, Operand
from ..traits import Storage
from ..types import TensorType


@dataclass(frozen=True)
class ReduceAttrs(Attrs):
    """``axes`` count from the front, in ascending order; ``keepdim`` leaves them with extent 1."""

    axes: tuple[int, ...]
    keepdim: bool = False


class ReduceOp(Op):
    """Base of the reductions."""

    x = Operand()
    function: ClassVar[Callable[..., torch.Tensor]]

    def infer_types(self) -> tuple[TensorType, ...]:
        x, axes = self.x.type, self.attrs.axes
        if not axes or list(axes) != sorted(set(axes)) or not (axes[0] >= 0 and axes[-1] < x.rank):
            raise self.error(f"axes {list(axes)} are not distinct ascending dimensions of {x}")
        if self.attrs.keepdim:
            return (x.with_shape(tuple(1 if axis in axes else extent for axis, extent in enumerate(x.shape))),)
        return (x.with_shape(tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).function(x, self.attrs.axes, keepdim=self.attrs.keepdim)


class MeanOp(ReduceOp, name="mean", attrs=ReduceAttrs):
    """Arithmetic mean."""

    function = torch.mean
    linear = True

    @property
    def storage(self) -> Storage:
        """Global average pooling works on channel blocks too."""
        pools = self.x.type.rank == 4 and self.attrs.axes == (2, 3)
        return Storage.FOLLOWS if pools else Storage.PLAIN


class SumOp(ReduceOp, name="sum", attrs=ReduceAttrs):
    """Sum, in the operand's element type."""

    linear = True

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x, self.attrs.axes, keepdim=self.attrs.keepdim, dtype=x.dtype)


class MaxOp(ReduceOp, name="reduce_max", attrs=ReduceAttrs):
    """Largest element."""

    function = torch.amax


class MinOp(ReduceOp, name="reduce_min", attrs=ReduceAttrs):
    """Smallest element."""

    function = torch.amin
