"""Normalisations: batch norm (inference form), layer norm, softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Narrowing
from ..types import TensorType


@dataclass(frozen=True)
class EpsilonAttrs(Attrs):
    """Added to the variance."""

    eps: float = 1e-5


class BatchNormOp(Op, name="batch_norm", attrs=EpsilonAttrs):
    """(x - mean) / sqrt(variance + eps) * gamma + beta per channel (dimension 1), with stored statistics."""

    x = Operand()
    mean = Operand()
    variance = Operand()
    gamma = Operand(optional=True)
    beta = Operand(optional=True)
    linear = True
    channels = ChannelFlow.IDENTITY

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if x.rank < 2 or not x.dtype.is_floating:
            raise self.error(f"needs a floating-point operand with a channel dimension, got {x}")
        for parameter in self.inputs[1:]:
            if parameter.shape != (x.shape[1],):
                raise self.error(f"parameter {parameter.type} does not fit the {x.shape[1]} channels of {x}")
        return (x.logical,)

    def evaluate(
        self,
        x: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        gamma: torch.Tensor | None = None,
        beta: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=self.attrs.eps)

    def apart(self, index: int, axis: int) -> int | None:
        return axis if index == 0 and axis != 1 else None


@dataclass(frozen=True)
class LayerNormAttrs(Attrs):
    """``dims`` is the number of trailing dimensions normalised together.

    Statistics count ``absent`` zeros besides: those of channels that were pruned.
    """

    dims: int = 1
    eps: float = 1e-5
    absent: int = 0


class LayerNormOp(Op, name="layer_norm", attrs=LayerNormAttrs):
    """Normalise over the trailing dimensions, then scale by gamma and shift by beta (Ba et al. 2016)."""

    x = Operand()
    gamma = Operand(optional=True)
    beta = Operand(optional=True)
    leads_group = True
    default_narrowing = Narrowing.FOLLOWS
    wide_operands = 1
    channels = ChannelFlow.NORMALIZES

    def infer_types(self) -> tuple[TensorType, ...]:
        x, dims = self.x.type, self.attrs.dims
        if not 1 <= dims <= x.rank or not x.dtype.is_floating:
            raise self.error(f"cannot normalise {dims} trailing dimensions of {x}")
        if self.attrs.absent < 0:
            raise self.error(f"absent is a number of zeros, not {self.attrs.absent}")
        for parameter in self.inputs[1:]:
            if parameter.shape != x.shape[-dims:]:
                raise self.error(
                    f"parameter {parameter.type} does not fit the normalised shape {list(x.shape[-dims:])}"
                )
        return (x.logical,)

    def evaluate(
        self, x: torch.Tensor, gamma: torch.Tensor | None = None, beta: torch.Tensor | None = None
    ) -> torch.Tensor:
        shape = x.shape[-self.attrs.dims :]
        if not self.attrs.absent:
            return functional.layer_norm(x, shape, gamma, beta, self.attrs.eps)
        rows = functional.pad(x.flatten(-self.attrs.dims), (0, self.attrs.absent))
        whole = functional.layer_norm(rows, rows.shape[-1:], eps=self.attrs.eps)
        result = whole[..., : rows.shape[-1] - self.attrs.absent].reshape(x.shape)
        result = result if gamma is None else result * gamma
        return result if beta is None else result + beta

    def apart(self, index: int, axis: int) -> int | None:
        return axis if index == 0 and axis < self.x.type.rank - self.attrs.dims else None


@dataclass(frozen=True)
class SoftmaxAttrs(Attrs):
    """``axis`` counts from the front; ``log`` returns the logarithm."""

    axis: int
    log: bool = False


class SoftmaxOp(Op, name="softmax", attrs=SoftmaxAttrs):
    """exp(x) divided by its sum along one axis."""

    x = Operand()
    leads_group = True

    @property
    def narrowing(self) -> Narrowing:
        """Logarithms are computed in steps, which would round to the narrow type."""
        return Narrowing.NEVER if self.attrs.log else Narrowing.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        x = self.x.type
        if not 0 <= self.attrs.axis < x.rank or not x.dtype.is_floating:
            raise self.error(f"axis {self.attrs.axis} does not fit {x}")
        return (x.logical,)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        function = torch.log_softmax if self.attrs.log else torch.softmax
        return function(x, self.attrs.axis)

    def apart(self, index: int, axis: int) -> int | None:
        return None if axis == self.attrs.axis else axis
