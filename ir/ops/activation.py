"""Elementwise ops of one operand: activations, roundings, casts and elementary functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Storage
from ..types import DType, TensorType
from .integers import integer_range


class UnaryOp(Op):
    """Base of the elementwise ops of one operand; the result has the operand's shape and element type."""

    x = Operand()
    elementwise = True
    channels = ChannelFlow.IDENTITY
    default_storage = Storage.FOLLOWS

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.logical,)


class FloatUnaryOp(UnaryOp):
    """A unary op that is defined on floating-point tensors only."""

    def infer_types(self) -> tuple[TensorType, ...]:
        if not self.x.type.dtype.is_floating:
            raise self.error(f"needs a floating-point operand, got {self.x.type}; insert a cast")
        return super().infer_types()


class ReluOp(UnaryOp, name="relu"):
    """max(x, 0)."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


@dataclass(frozen=True)
class ClampAttrs(Attrs):
    """Bounds; infinite where there is none."""

    min: float = -math.inf
    max: float = math.inf


class ClampOp(UnaryOp, name="clamp", attrs=ClampAttrs):
    """min(max(x, min), max); ReLU6 is ``clamp {min=0.0, max=6.0}``.

    For integers, bounds are cut to integers first, towards zero, and to the range of their type.
    """

    @property
    def integer_bounds(self) -> tuple[int, int]:
        """The bounds in effect for an integer operand."""
        low, high = integer_range(self.x.type.dtype)
        bounds = (min(max(bound, low), high) for bound in (self.attrs.min, self.attrs.max))
        return tuple(math.trunc(bound) for bound in bounds)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return torch.clamp(x, *self.integer_bounds)
        low = None if self.attrs.min == -math.inf else self.attrs.min
        high = None if self.attrs.max == math.inf else self.attrs.max
        return x.clone() if low is None and high is None else torch.clamp(x, low, high).to(x.dtype)


@dataclass(frozen=True)
class LeakyReluAttrs(Attrs):
    """Slope for negative values."""

    negative_slope: float = 0.01


class LeakyReluOp(FloatUnaryOp, name="leaky_relu", attrs=LeakyReluAttrs):
    """x where positive, else x times the slope."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, self.attrs.negative_slope)


@dataclass(frozen=True)
class GeluAttrs(Attrs):
    """``"none"`` for the exact form with erf, ``"tanh"`` for its approximation."""

    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', not {self.approximate!r}")


class GeluOp(FloatUnaryOp, name="gelu", attrs=GeluAttrs):
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016)."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate=self.attrs.approximate)


class SigmoidOp(FloatUnaryOp, name="sigmoid"):
    """1 / (1 + exp(-x))."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)


class SiluOp(FloatUnaryOp, name="silu"):
    """x times sigmoid(x); also called swish."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(x)


class HardSwishOp(FloatUnaryOp, name="hardswish"):
    """x times clamp(x + 3, 0, 6) / 6."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.hardswish(x)


class HardSigmoidOp(FloatUnaryOp, name="hardsigmoid"):
    """clamp(x + 3, 0, 6) / 6."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.hardsigmoid(x)


class TanhOp(FloatUnaryOp, name="tanh"):
    """Hyperbolic tangent."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)


class ExpOp(FloatUnaryOp, name="exp"):
    """Exponential."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x)


class LogOp(FloatUnaryOp, name="log"):
    """Natural logarithm."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x)


class Expm1Op(FloatUnaryOp, name="expm1"):
    """exp(x) - 1, accurate near 0 where the difference would cancel."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.expm1(x)


class Log1pOp(FloatUnaryOp, name="log1p"):
    """log(1 + x), accurate near 0 where the sum would be rounded."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log1p(x)


class SqrtOp(FloatUnaryOp, name="sqrt"):
    """Square root."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x)


class RsqrtOp(FloatUnaryOp, name="rsqrt"):
    """1 / sqrt(x)."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(x)


class ReciprocalOp(FloatUnaryOp, name="reciprocal"):
    """1 / x."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.reciprocal(x)


class ErfOp(FloatUnaryOp, name="erf"):
    """Error function."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


class SinOp(FloatUnaryOp, name="sin"):
    """Sine."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


class CosOp(FloatUnaryOp, name="cos"):
    """Cosine."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(x)


class NegOp(UnaryOp, name="neg"):
    """-x."""

    linear = True

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.neg(x)


class AbsOp(UnaryOp, name="abs"):
    """Absolute value."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.abs(x)


class FloorOp(FloatUnaryOp, name="floor"):
    """Largest integer not above x."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x)


class CeilOp(FloatUnaryOp, name="ceil"):
    """Smallest integer not below x."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ceil(x)


class LogicalNotOp(UnaryOp, name="logical_not"):
    """True where x is zero or false."""

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_dtype(DType.BOOL),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logical_not(x)


@dataclass(frozen=True)
class CastAttrs(Attrs):
    """The element type to convert to."""

    dtype: DType


class CastOp(UnaryOp, name="cast", attrs=CastAttrs):
    """Convert the element type, rounding as PyTorch does."""

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_dtype(self.attrs.dtype),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.attrs.dtype.torch)
