"""Elementwise ops of one operand: activations, roundings, casts and elementary functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Operand
from ..types import DType, TensorType
from .arithmetic import ElementwiseOp
from .integers import integer_range


class UnaryOp(ElementwiseOp):
    """Base of the elementwise ops of one operand; the result has the operand's shape and element type."""

    x = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.logical,)


class FloatUnaryOp(UnaryOp):
    """A unary op that is defined on floating-point tensors only."""

    def infer_types(self) -> tuple[TensorType, ...]:
        if not self.x.type.dtype.is_floating:
            raise self.error(f"needs a floating-point operand, got {self.x.type}; insert a cast")
        return super().infer_types()


class FiniteUnaryOp(FloatUnaryOp):
    """One that makes finite numbers of finite numbers."""

    always_finite = True


class ReluOp(UnaryOp, name="relu", function=torch.relu):
    """max(x, 0)."""

    always_finite = True


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
    def keeps_finite(self) -> bool:
        """Unless a bound leaves no finite number."""
        return self.attrs.min < math.inf and self.attrs.max > -math.inf

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

    @property
    def keeps_finite(self) -> bool:
        """Unless the slope is not finite."""
        return math.isfinite(self.attrs.negative_slope)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, self.attrs.negative_slope)


@dataclass(frozen=True)
class GeluAttrs(Attrs):
    """``"none"`` for the exact form with erf, ``"tanh"`` for its approximation."""

    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', not {self.approximate!r}")


class GeluOp(FiniteUnaryOp, name="gelu", attrs=GeluAttrs):
    """x times the normal distribution function of x (Hendrycks and Gimpel 2016)."""

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate=self.attrs.approximate)


class SigmoidOp(FiniteUnaryOp, name="sigmoid", function=torch.sigmoid):
    """1 / (1 + exp(-x))."""


class SiluOp(FiniteUnaryOp, name="silu", function=functional.silu):
    """x times sigmoid(x); also called swish."""


class HardSwishOp(FiniteUnaryOp, name="hardswish", function=functional.hardswish):
    """x times clamp(x + 3, 0, 6) / 6."""


class HardSigmoidOp(FiniteUnaryOp, name="hardsigmoid", function=functional.hardsigmoid):
    """clamp(x + 3, 0, 6) / 6."""


class TanhOp(FiniteUnaryOp, name="tanh", function=torch.tanh):
    """Hyperbolic tangent."""


class ExpOp(FloatUnaryOp, name="exp", function=torch.exp):
    """Exponential."""


class LogOp(FloatUnaryOp, name="log", function=torch.log):
    """Natural logarithm."""


class Expm1Op(FloatUnaryOp, name="expm1", function=torch.expm1):
    """exp(x) - 1, accurate near 0 where the difference would cancel."""


class Log1pOp(FloatUnaryOp, name="log1p", function=torch.log1p):
    """log(1 + x), accurate near 0 where the sum would be rounded."""


class SqrtOp(FloatUnaryOp, name="sqrt", function=torch.sqrt):
    """Square root."""


class RsqrtOp(FloatUnaryOp, name="rsqrt", function=torch.rsqrt):
    """1 / sqrt(x)."""


class ReciprocalOp(FloatUnaryOp, name="reciprocal", function=torch.reciprocal):
    """1 / x."""


class ErfOp(FiniteUnaryOp, name="erf", function=torch.erf):
    """Error function."""


class SinOp(FiniteUnaryOp, name="sin", function=torch.sin):
    """Sine."""


class CosOp(FiniteUnaryOp, name="cos", function=torch.cos):
    """Cosine."""


class TanOp(FloatUnaryOp, name="tan", function=torch.tan):
    """Tangent."""


class AsinOp(FloatUnaryOp, name="asin", function=torch.asin):
    """Inverse sine."""


class AcosOp(FloatUnaryOp, name="acos", function=torch.acos):
    """Inverse cosine."""


class AtanOp(FiniteUnaryOp, name="atan", function=torch.atan):
    """Inverse tangent."""


class SinhOp(FloatUnaryOp, name="sinh", function=torch.sinh):
    """Hyperbolic sine."""


class CoshOp(FloatUnaryOp, name="cosh", function=torch.cosh):
    """Hyperbolic cosine."""


class AsinhOp(FiniteUnaryOp, name="asinh", function=torch.asinh):
    """Inverse hyperbolic sine."""


class AcoshOp(FloatUnaryOp, name="acosh", function=torch.acosh):
    """Inverse hyperbolic cosine."""


class AtanhOp(FloatUnaryOp, name="atanh", function=torch.atanh):
    """Inverse hyperbolic tangent."""


class ErfcOp(FiniteUnaryOp, name="erfc", function=torch.erfc):
    """1 - erf(x), accurate where the difference would cancel."""


class LgammaOp(FloatUnaryOp, name="lgamma", function=torch.lgamma):
    """Logarithm of the absolute value of the gamma function."""


class Exp2Op(FloatUnaryOp, name="exp2", function=torch.exp2):
    """2 raised to x."""


class NegOp(UnaryOp, name="neg", function=torch.neg):
    """-x."""

    linear = True
    always_finite = True


class AbsOp(UnaryOp, name="abs", function=torch.abs):
    """Absolute value."""

    always_finite = True


class FloorOp(FiniteUnaryOp, name="floor", function=torch.floor):
    """Largest integer not above x."""


class CeilOp(FiniteUnaryOp, name="ceil", function=torch.ceil):
    """Smallest integer not below x."""


class TruncOp(FiniteUnaryOp, name="trunc", function=torch.trunc):
    """The integer next to x towards zero."""


class RoundOp(FiniteUnaryOp, name="round", function=torch.round):
    """The integer next to x, the even one of two."""


class LogicalNotOp(UnaryOp, name="logical_not", function=torch.logical_not):
    """True where x is zero or false."""

    always_finite = True

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_dtype(DType.BOOL),)


@dataclass(frozen=True)
class CastAttrs(Attrs):
    """The element type to convert to."""

    dtype: DType


class CastOp(UnaryOp, name="cast", attrs=CastAttrs):
    """Convert the element type, rounding as PyTorch does."""

    always_finite = True
    keeps_numbers = True  # whole ones, which row numbers are

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.with_dtype(self.attrs.dtype),)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.attrs.dtype.torch)
