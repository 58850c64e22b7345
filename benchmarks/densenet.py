"""DenseNet-121, https://arxiv.org/abs/1608.06993, written as torchvision does: with a list of all earlier layers.

Each layer joins the list anew. The network that `pytorchcv` has joins what was joined before with one more layer, so
the two are different graphs of the same numbers.
"""

from __future__ import annotations

import torch
from torch import nn

_GROWTH = 32
_WIDENING = 4  # of the pointwise convolution, over the growth
_LAYERS = (6, 12, 24, 16)
_STEM = 64


def _activated(channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False),
    )


class DenseBlock(nn.Module):
    """Layers that each read everything before them."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                _activated(channels + index * _GROWTH, _WIDENING * _GROWTH, 1),
                _activated(_WIDENING * _GROWTH, _GROWTH, 3),
            )
            for index in range(layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class DenseNet(nn.Module):
    """Four blocks of dense layers, with a transition that halves channels and picture between them."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, _STEM, 7, stride=2, padding=3, bias=False)
        parts: list[nn.Module] = [stem, nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        channels = _STEM
        for index, layers in enumerate(_LAYERS):
            parts.append(DenseBlock(channels, layers))
            channels += layers * _GROWTH
            if index < len(_LAYERS) - 1:
                parts += [_activated(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
        parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.classifier(self.features(x))
        return result
