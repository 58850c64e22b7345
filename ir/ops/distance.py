"""Distances between points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core import Attrs, Op, Operand
from ..types import DType, TensorType


@dataclass(frozen=True)
class DistanceAttrs(Attrs):
    """The power ``p`` of the norm, at least 0; infinite for the largest difference."""

    p: float = 2.0

    def __post_init__(self) -> None:
        if not self.p >= 0:
            raise ValueError(f"p must not be negative, got {self.p}")


class DistanceOp(Op, name="distance", attrs=DistanceAttrs):
    """The p-norms of the differences of points [..., M, K] and [..., N, K] -> [..., M, N]."""

    x = Operand()
    y = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        x, y = self.x.type, self.y.type
        fits = x.rank >= 2 and x.rank == y.rank and (x.shape[:-2], x.shape[-1]) == (y.shape[:-2], y.shape[-1])
        if not fits or x.dtype is not y.dtype or x.dtype not in (DType.F32, DType.F64):
            raise self.error(f"needs f32 or f64 points [..., M, K] and [..., N, K], got {x} and {y}")
        return (x.with_shape((*x.shape[:-1], y.shape[-2])),)

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, y, self.attrs.p, compute_mode="donot_use_mm_for_euclid_dist")

    def apart(self, index: int, axis: int) -> int | None:
        return axis if axis < self.x.type.rank - 2 else None

    def macs(self) -> int:
        """One power and addition for each pair and coordinate."""
        return math.prod(self.result.shape) * self.x.shape[-1]
