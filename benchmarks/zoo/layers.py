"""Layers that several of the zoo's own definitions share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def conv(
    channels: int,
    features: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    rank: int = 2,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A convolution that keeps the size, up to its stride, with batch normalisation and an activation."""
    padding = dilation * (kernel - 1) // 2
    layer = CONVOLUTIONS[rank](channels, features, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, NORMS[rank](features), activation())


def separable(
    channels: int, features: int, stride: int = 1, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """A convolution of each channel, and one of all channels at a point."""
    spatial = conv(channels, channels, 3, stride, groups=channels, activation=activation)
    return nn.Sequential(spatial, conv(channels, features, 1, activation=activation))


class Sum(nn.Module):
    """Branches of one input, added up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = (branch(x) for branch in self.branches)
        return sum(rest, first)


class Concat(Sum):
    """Branches of one input, side by side as channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def residual(*layers: nn.Module) -> Sum:
    """Layers, with what goes into them added to what comes out."""
    return Sum(nn.Identity(), nn.Sequential(*layers))


class First(nn.Module):
    """The first result of a recurrent layer: all its outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)
