"""Rounding with gradients: those of the numbers pass straight through, those of the step size are LSQ's or PACT's.

Let ``r = x / s``, and ``q`` the nearest integer of ``r`` between ``low`` and ``high``. The result is ``s q``. Rounding
itself is taken for the identity (Bengio et al. 2013), so

    d(s q) / dx = 1 between the limits, 0 outside
    d(s q) / ds = q - r between the limits, low or high outside

The term ``q - r`` is that of LSQ; PACT, which learns the limit rather than the step, leaves it out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, step: torch.Tensor, low: int, high: int, factor: float, learns_inside: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(x, step)
        ctx.rule = low, high, factor, learns_inside
        return (x / step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, step = ctx.saved_tensors
        low, high, factor, learns_inside = ctx.rule
        ratio = x / step
        inside = (ratio >= low) & (ratio <= high)
        of_x = gradient * inside
        slope = torch.where(inside, ratio.round() - ratio if learns_inside else 0.0, ratio.clamp(low, high))
        of_step = (gradient * slope).sum_to_size(step.shape) * factor
        return of_x, of_step, None, None, None, None


def rounded(
    x: torch.Tensor, step: torch.Tensor, limits: tuple[int, int], factor: float = 1.0, *, learns_inside: bool = True
) -> torch.Tensor:
    """``x`` rounded to multiples of ``step``.

    Parameters
    ----------
    x
        f32.
    step
        f32, broadcasts to x.
    limits
        Smallest and largest multiple.
    factor
        Of the step's gradient.
    learns_inside
        Whether numbers between the limits have a say in the step's gradient.
    """
    result: torch.Tensor = _Rounding.apply(x, step, *limits, factor, learns_inside)
    return result
