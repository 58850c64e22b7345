"""What becomes of quantized training that diverged: one line that names the layer."""

from __future__ import annotations

import torch

from ..ir import TersorError

_LEAST = 1e-4  # of a step size, beside that before training
_ADVICE = "load an earlier state, and train with a lower learning rate"


def check_step(name: str, now: torch.Tensor, before: torch.Tensor) -> None:
    """Raise TersorError where step sizes are NaN or infinite, or all far from what they were.

    Of smaller ones numbers are clipped, of larger ones all are rounded to zero.
    """
    before = before.to(now.device)
    if not bool(now.isfinite().all()):
        raise TersorError(f"training diverged: the step size of {name} is NaN or infinite; {_ADVICE}")
    if bool((now <= _LEAST * before).all()):
        raise TersorError(f"training diverged: the step size of {name} collapsed to {now.max().item():.3g}; {_ADVICE}")
    if bool((now >= before / _LEAST).all()):
        raise TersorError(f"training diverged: the step size of {name} grew to {now.min().item():.3g}; {_ADVICE}")


def check_finite(name: str, numbers: torch.Tensor) -> None:
    """Raise TersorError where a weight or a statistic is not finite."""
    if not bool(numbers.isfinite().all()):
        raise TersorError(f"training diverged: {name} has numbers that are NaN or infinite; {_ADVICE}")


def check_numbers(name: str, numbers: torch.Tensor) -> None:
    """Raise TersorError where what is computed, or given, is NaN."""
    if bool(numbers.isnan().any()):
        advice = "check the data" if name.startswith("input ") else _ADVICE
        raise TersorError(f"training diverged: {name} is NaN; {advice}")


def check_weights(name: str, weight: torch.Tensor, integers: torch.Tensor) -> None:
    """Raise TersorError where step sizes are so large that a whole weight becomes 0."""
    if not bool(integers.any()) and bool(weight.any()):
        raise TersorError(f"training diverged: all of the weight of {name} rounds to 0; {_ADVICE}")
