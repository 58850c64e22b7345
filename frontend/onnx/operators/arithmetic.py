"""Elementwise operators of one or several tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch.nn import functional

from ..known import default_only, dtype_of, is_known, number
from ..registry import operator, operators

Tensor = torch.Tensor


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def compute(x: Tensor) -> Tensor:
        return function(x)

    return compute


operators(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseNot": torch.bitwise_not,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "HardSwish": functional.hardswish,
        "IsNaN": torch.isnan,
        "Log": torch.log,
        "Mish": functional.mish,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Round": torch.round,
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softplus": functional.softplus,
        "Softsign": functional.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
    },
    _unary,
)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return compute


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, number(y) if is_known(y) and y.numel() == 1 and y.ndim <= x.ndim else y).to(x.dtype)


operators(
    {
        "Add": torch.add,
        "And": torch.logical_and,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Div": _quotient,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Mul": torch.mul,
        "Or": torch.logical_or,
        "Pow": _power,
        "Sub": torch.sub,
        "Xor": torch.logical_xor,
    },
    _binary,
)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def compute(*parts: Tensor) -> Tensor:
        return functools.reduce(function, parts)

    return compute


operators({"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}, _folded)


@operator("Mean")
def mean(*parts: Tensor) -> Tensor:
    return functools.reduce(torch.add, parts) / len(parts)


@operator("Mod")
def mod(x: Tensor, y: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(x, y) if fmod else torch.remainder(x, y)


@operator("BitShift")
def bit_shift(x: Tensor, y: Tensor, *, direction: str = "") -> Tensor:
    return torch.bitwise_left_shift(x, y) if direction == "LEFT" else torch.bitwise_right_shift(x, y)


@operator("Where")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@operator("Cast")
def cast(x: Tensor, *, to: int = 1, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(dtype_of(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


@operator("Identity")
def identity(x: Tensor) -> Tensor:
    return x


@operator("Dropout")
def dropout(
    x: Tensor, ratio: Tensor | float = 0.5, training_mode: Tensor | None = None, *, seed: int = 0, outputs: int = 1
) -> tuple[Tensor, ...]:
    default_only(training_mode=number(training_mode))
    return (x, torch.ones(x.shape, dtype=torch.bool)) if outputs > 1 else (x,)


@operator("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    return found if detect_positive else found & (x < 0)


# Activations ------------------------------------------------------------------------------------------------------


@operator("Clip")
def clip(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    if is_known(min) and is_known(max):
        low, high = number(min), number(max)
        return x if low is None and high is None else torch.clamp(x, low, high)
    low, high = (bound if isinstance(bound, Tensor) else None for bound in (min, max))
    return torch.clamp(x, low, high)


@operator("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


@operator("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


@operator("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return torch.ops.aten.elu(x, alpha, gamma)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0.0)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return functional.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


@operator("Gelu", "com.microsoft::Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


@operator("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0.0))
