"""Elementwise ops of one operand: activations, roundings, casts and elementary functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from ..core import Attrs, Operand
from ..types import DType, TensorType
from .arithmetic import ElementwiseOp
from .integers import integer_range


class UnaryOp(ElementwiseOp):
    """Base of the elementwise ops of one operand; the result has the operand's shape and element type."""

    x = Operand()
    function: ClassVar[Callable[[torch.Tensor], torch.Tensor]]

    def infer_types(self) -> tuple[TensorType, ...]:
        return (self.x.type.logical,)

    def evaluate(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).function(x)


class FloatUnaryOp(UnaryOp):
    """A unary op that is defined on floating-point tensors only."""

    def infer_types(self) -> tuple[TensorType, ...]:
        if not self.x.type.dtype.is_floating:
            raise self.error(f"needs a floating-point operand, got {self.x.type}; insert a cast")
        return super().infer_types()


class FiniteUnaryOp(FloatUnaryOp):
    """One that makes finite numbers of finite numbers."""

    always_finite = True


class ReluOp(UnaryOp, name="relu"):
    """max(x, 0)."""

    function = torch.relu
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


class SigmoidOp(FiniteUnaryOp, name="sigmoid"):
    """1 / (1 + exp(-x))."""

    function = torch.sigmoid


class SiluOp(FiniteUnaryOp, name="silu"):
    """x times sigmoid(x); also called swish."""

    function = functional.silu


class HardSwishOp(FiniteUnaryOp, name="hardswish"):
    """x times clamp(x + 3, 0, 6) / 6."""

    function = functional.hardswish


class HardSigmoidOp(FiniteUnaryOp, name="hardsigmoid"):
    """clamp(x + 3, 0, 6) / 6."""

    function = functional.hardsigmoid


class TanhOp(FiniteUnaryOp, name="tanh"):
    """Hyperbolic tangent."""

    function = torch.tanh


class ExpOp(FloatUnaryOp, name="exp"):
    """Exponential."""

    function = torch.exp


class LogOp(FloatUnaryOp, name="log"):
    """Natural logarithm."""

    function = torch.log


class Expm1Op(FloatUnaryOp, name="expm1"):
    """exp(x) - 1, accurate near 0 where the difference would cancel."""

    function = torch.expm1


class Log1pOp(FloatUnaryOp, name="log1p"):
    """log(1 + x), accurate near 0 where the sum would be rounded."""

    function = torch.log1p


class SqrtOp(FloatUnaryOp, name="sqrt"):
    """Square root."""

    function = torch.sqrt


class RsqrtOp(FloatUnaryOp, name="rsqrt"):
    """1 / sqrt(x)."""

    function = torch.rsqrt


class ReciprocalOp(FloatUnaryOp, name="reciprocal"):
    """1 / x."""

    function = torch.reciprocal


class ErfOp(FiniteUnaryOp, name="erf"):
    """Error function."""

    function = torch.erf


class SinOp(FiniteUnaryOp, name="sin"):
    """Sine."""

    function = torch.sin


class CosOp(FiniteUnaryOp, name="cos"):
    """Cosine."""

    function = torch.cos


class TanOp(FloatUnaryOp, name="tan"):
    """Tangent."""

    function = torch.tan


class AsinOp(FloatUnaryOp, name="asin"):
    """Inverse sine."""

    function = torch.asin


class AcosOp(FloatUnaryOp, name="acos"):
    """Inverse cosine."""

    function = torch.acos


class AtanOp(FiniteUnaryOp, name="atan"):
    """Inverse tangent."""

    function = torch.atan


class SinhOp(FloatUnaryOp, name="sinh"):
    """Hyperbolic sine."""

    function = torch.sinh


class CoshOp(FloatUnaryOp, name="cosh"):
    """Hyperbolic cosine."""

    function = torch.cosh


class AsinhOp(FiniteUnaryOp, name="asinh"):
    """Inverse hyperbolic sine."""

    function = torch.asinh


class AcoshOp(FloatUnaryOp, name="acosh"):
    """Inverse hyperbolic cosine."""

    function = torch.acosh


class AtanhOp(FloatUnaryOp, name="atanh"):
    """Inverse hyperbolic tangent."""

    function = torch.atanh


class ErfcOp(FiniteUnaryOp, name="erfc"):
    """1 - erf(x), accurate where the difference would cancel."""

    function = torch.erfc


class LgammaOp(FloatUnaryOp, name="lgamma"):
    """Logarithm of the absolute value of the gamma function."""

    function = torch.lgamma


class Exp2Op(FloatUnaryOp, name="exp2"):
    """2 raised to x."""

    function = torch.exp2


class NegOp(UnaryOp, name="neg"):
    """-x."""

    linear = True
    function = torch.neg
    always_finite = True


class AbsOp(UnaryOp, name="abs"):
    """Absolute value."""

    function = torch.abs
    always_finite = True


class FloorOp(FiniteUnaryOp, name="floor"):
    """Largest integer not above x."""

    function = torch.floor


class CeilOp(FiniteUnaryOp, name="ceil"):
    """Smallest integer not below x."""

    function = torch.ceil


class TruncOp(FiniteUnaryOp, name="trunc"):
    """The integer next to x towards zero."""

    function = torch.trunc


class RoundOp(FiniteUnaryOp, name="round"):
    """The integer next to x, the even one of two."""

    function = torch.round


class LogicalNotOp(UnaryOp, name="logical_not"):
    """True where x is zero or false."""

    function = torch.logical_not
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
