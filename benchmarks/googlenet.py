"""GoogLeNet, https://arxiv.org/abs/1409.4842, in the variant that torchvision made standard.

Batch normalisation follows every convolution, the "5x5" branch uses a 3x3 kernel, and there are no auxiliary
classifiers. `pytorchcv` has no such network, hence this file.
"""

from __future__ import annotations

import torch
from torch import nn

# Output channels of each inception block: 1x1; 3x3 reduction, 3x3; "5x5" reduction, "5x5"; pool projection.
_INCEPTION_3 = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
_INCEPTION_4 = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
_INCEPTION_5 = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels, eps=0.001),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """Four parallel branches over the same input, concatenated along the channels."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        single, reduce_three, three, reduce_five, five, projection = widths
        self.single = _convolution(in_channels, single, 1)
        self.three = nn.Sequential(_convolution(in_channels, reduce_three, 1), _convolution(reduce_three, three, 3))
        self.five = nn.Sequential(_convolution(in_channels, reduce_five, 1), _convolution(reduce_five, five, 3))
        self.pool = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            _convolution(in_channels, projection, 1),
        )
        self.out_channels = single + three + five + projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.single(x), self.three(x), self.five(x), self.pool(x)), dim=1)


class GoogLeNet(nn.Module):
    """Images ``[batch, 3, 224, 224]`` in, class scores ``[batch, classes]`` out."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, 64, 7, stride=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            _convolution(64, 64, 1),
            _convolution(64, 192, 3),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        channels = 192
        stages: list[nn.Module] = []
        for kernel, blocks in ((0, _INCEPTION_3), (3, _INCEPTION_4), (2, _INCEPTION_5)):
            if kernel:
                stages.append(nn.MaxPool2d(kernel, stride=2, ceil_mode=True))
            for widths in blocks:
                block = Inception(channels, widths)
                stages.append(block)
                channels = block.out_channels
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        x = torch.flatten(self.pool(x), 1)
        return self.output(self.dropout(x))
