"""Weights, rounded with one learned step size for each output channel (LSQ, as for activations)."""

from __future__ import annotations

import math

import torch
from torch import nn

from ...passes.quantization.scheme import largest_weight, weight_scales
from .straight_through import rounded

FLOOR = 1 / 16  # of the step size of a channel before training: a few weights alone may pull it below zero


class WeightQuantizer(nn.Module):
    """Rounds the weight of a layer, with step sizes that learn.

    Parameters
    ----------
    weight
        f32 [O, ...]: the weight before training, batch normalisation included. Step sizes begin as those that
        ``quantize-realize`` takes.
    bits
        Of the integers.
    scales
        [O]: step sizes to begin with, instead.

    Attributes
    ----------
    step_sizes
        f32 [O].
    initial
        f32 [O]: the step sizes before training.
    """

    def __init__(self, weight: torch.Tensor, bits: int, scales: torch.Tensor | None = None) -> None:
        super().__init__()
        self.largest = largest_weight(bits)
        self.initial = (weight_scales(weight.detach(), self.largest) if scales is None else scales).float()
        self.step_sizes = nn.Parameter(self.initial.clone())

    @property
    def steps(self) -> torch.Tensor:
        """f32 [O]: the step sizes that count, at least `FLOOR` of the first ones; gradients reach the parameter."""
        floor = FLOOR * self.initial.to(self.step_sizes.device)
        return torch.maximum(self.step_sizes.detach(), floor) + (self.step_sizes - self.step_sizes.detach())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight [O, ...], f32, rounded."""
        steps = self.steps.reshape(-1, *[1] * (weight.ndim - 1))
        factor = 1 / math.sqrt(max(1, weight.numel() // len(weight)) * self.largest)
        return rounded(weight, steps, (-self.largest, self.largest), factor)
