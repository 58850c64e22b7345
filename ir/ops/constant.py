"""Constants: a weight from the graph's store, and a tensor filled with one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core import Attrs, Op
from ..extents import Extent
from ..traits import ChannelFlow
from ..types import DType, TensorType


@dataclass(frozen=True)
class WeightAttrs(Attrs):
    """``id`` names the tensor in the graph's `WeightStore`; ``type`` is its type."""

    id: str
    type: TensorType


class WeightOp(Op, name="weight", attrs=WeightAttrs):
    """A tensor of the weight store; several ops may name one id (shared weights)."""

    channels = ChannelFlow.SOURCE

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.attrs.type,)

    def evaluate(self) -> torch.Tensor:
        if self.graph is None:
            raise self.error("is in no graph, so its weight cannot be looked up")
        return self.graph.weights[self.attrs.id]


@dataclass(frozen=True)
class FullAttrs(Attrs):
    """A tensor of ``shape`` (``()`` for a scalar) filled with ``value``."""

    value: float | int | bool
    shape: tuple[int, ...] = ()
    dtype: DType = DType.F32


class FullOp(Op, name="full", attrs=FullAttrs):
    """A tensor filled with one number; rank 0 is how scalars of the model enter the graph."""

    channels = ChannelFlow.SOURCE

    @property
    def known(self) -> bool:
        """Whether number and shape do not depend on extents that a call chooses."""
        return not (isinstance(self.attrs.value, Extent) or self.result.type.symbolic)

    @property
    def keeps_finite(self) -> bool:
        """Whether the number is finite."""
        return math.isfinite(self.attrs.value)

    def infer_types(self) -> tuple[TensorType, ...]:
        try:
            torch.full((), self.attrs.value, dtype=self.attrs.dtype.torch)
        except (RuntimeError, OverflowError, ValueError) as error:
            raise self.error(f"{self.attrs.value!r} is not a number of type {self.attrs.dtype.value}") from error
        return (TensorType(self.attrs.shape, self.attrs.dtype),)

    def evaluate(self) -> torch.Tensor:
        return torch.full(self.attrs.shape, self.attrs.value, dtype=self.attrs.dtype.torch)


@dataclass(frozen=True)
class IotaAttrs(Attrs):
    """As many numbers as ``count``."""

    count: int
    dtype: DType = DType.I64


class IotaOp(Op, name="iota", attrs=IotaAttrs):
    """The numbers 0, 1, 2, … [count]: a constant of an extent that is not known yet."""

    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        return (TensorType((self.attrs.count,), self.attrs.dtype),)

    def evaluate(self) -> torch.Tensor:
        return torch.arange(self.attrs.count, dtype=self.attrs.dtype.torch)
