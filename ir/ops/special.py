"""Functions of two numbers that take a number of steps which depends on them: orthogonal polynomials, zeta, gamma."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..core import Attrs, FunctionOp, Operand
from ..types import DType, TensorType

_Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_STEPS = 100  # of one element, as an estimate of its cost

POLYNOMIALS: dict[str, _Function] = {
    "chebyshev_t": torch.special.chebyshev_polynomial_t,
    "chebyshev_u": torch.special.chebyshev_polynomial_u,
    "chebyshev_v": torch.special.chebyshev_polynomial_v,
    "chebyshev_w": torch.special.chebyshev_polynomial_w,
    "shifted_chebyshev_t": torch.special.shifted_chebyshev_polynomial_t,
    "shifted_chebyshev_u": torch.special.shifted_chebyshev_polynomial_u,
    "shifted_chebyshev_v": torch.special.shifted_chebyshev_polynomial_v,
    "shifted_chebyshev_w": torch.special.shifted_chebyshev_polynomial_w,
    "hermite_h": torch.special.hermite_polynomial_h,
    "hermite_he": torch.special.hermite_polynomial_he,
    "laguerre_l": torch.special.laguerre_polynomial_l,
    "legendre_p": torch.special.legendre_polynomial_p,
}


class SteppedOp(FunctionOp):
    """Base of the ops on two tensors of one shape, of f32 or f64, that compute each element in a loop of its own."""

    x = Operand()
    y = Operand()

    def infer_types(self) -> tuple[TensorType, ...]:
        x, y = self.x.type, self.y.type
        if x.shape != y.shape or x.dtype is not y.dtype or x.dtype not in (DType.F32, DType.F64):
            raise self.error(f"needs f32 or f64 tensors of one shape and element type, got {x} and {y}")
        return (x.logical,)

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return type(self).function(x, y)

    def macs(self) -> int:
        return self.result.type.size * _STEPS


@dataclass(frozen=True)
class PolynomialAttrs(Attrs):
    """The family, one of `POLYNOMIALS`."""

    family: str

    def __post_init__(self) -> None:
        if self.family not in POLYNOMIALS:
            raise ValueError(f"family must be one of {', '.join(POLYNOMIALS)}, not {self.family!r}")


class PolynomialOp(SteppedOp, name="orthogonal_polynomial", attrs=PolynomialAttrs):
    """The polynomial of degree y at x: the degree is cut to an integer, and 0 is the result where it is negative.

    It is 0 too where the degree has more than 63 bits.
    """

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        is_nan = x.isnan() & (y >= 1) & (y < 2.0**63)  # for which PyTorch returns what memory held
        return torch.where(is_nan, x, POLYNOMIALS[self.attrs.family](x, y))


class ZetaOp(SteppedOp, name="zeta", function=torch.special.zeta):
    """Hurwitz's zeta function, the sum over k >= 0 of 1 / (k + y)^x; infinite for x = 1, NaN below."""


@dataclass(frozen=True)
class IncompleteGammaAttrs(Attrs):
    """``upper`` for the integral from y to infinity, else that from 0 to y."""

    upper: bool = False


class IncompleteGammaOp(SteppedOp, name="incomplete_gamma", attrs=IncompleteGammaAttrs):
    """The integral of t^(x - 1) exp(-t), divided by gamma(x); of f32 in f64, in which PyTorch's formulas are exact."""

    def evaluate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        function = torch.special.gammaincc if self.attrs.upper else torch.special.gammainc
        return function(x.double(), y.double()).to(x.dtype)
