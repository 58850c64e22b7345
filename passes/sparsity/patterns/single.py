"""``single``: any weight may be zero, whatever its neighbours are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .registry import ZeroPattern, register_pattern


@register_pattern("single")
@dataclass(frozen=True)
class SingleZeros(ZeroPattern):
    """A unit is one weight."""

    def units(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.flatten()

    def spread(self, units: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return units.reshape(shape)
