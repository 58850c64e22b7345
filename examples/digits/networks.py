"""The three networks, for pictures of float32 [N, 1, 28, 28], ten classes: VGG-like, ResNet-20 and MobileNetV2-like.

Of ResNet-20 there are two more kinds: with branches that training leaves out at random, and with exits on the way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CLASSES = 10


class ConvNorm(nn.Sequential):
    """A convolution that keeps height and width (or halves them, with stride 2), and a batch normalisation.

    Parameters
    ----------
    inputs, outputs
        Channels.
    window
        Odd height and width of the window.
    groups
        Groups of the convolution.
    activation
        What follows, or None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        window: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, window, stride, window // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if activation is not None:
            self.activation = activation()


class Head(nn.Sequential):
    """Mean over all positions, and a linear layer."""

    def __init__(self, inputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Vgg(nn.Sequential):
    """Pairs of 3x3 convolutions with a pooling between them; 116 M multiply-adds.

    Method: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
    with batch normalisation, and one linear layer in place of three.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256)) -> None:
        layers: list[nn.Module] = []
        inputs = 1
        for width in widths:
            if layers:
                layers.append(nn.MaxPool2d(2))
            layers += [ConvNorm(inputs, width), ConvNorm(width, width)]
            inputs = width
        super().__init__(*layers, Head(inputs))


class StochasticDepth(nn.Module):
    """Leaves a branch out for some samples of a batch in training; the others weigh more, so that the mean stays.

    Method: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Parameters
    ----------
    probability
        Of leaving a sample's branch out, from 0 to below 1.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return branch
        stays = torch.rand(len(branch), *[1] * (branch.ndim - 1)) >= self.probability
        return branch * stays / (1 - self.probability)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; training leaves them out with a probability."""

    def __init__(self, inputs: int, outputs: int, stride: int, probability: float = 0.0) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, stride=stride)
        self.second = ConvNorm(outputs, outputs, activation=None)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, activation=None) if changes else nn.Identity()
        self.drop = StochasticDepth(probability)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.drop(self.second(self.first(x))) + self.shortcut(x))


class ResNet20(nn.Sequential):
    """Three stages of three basic blocks, as for CIFAR, with projections for shortcuts; 31 M multiply-adds.

    Method: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Parameters
    ----------
    widths
        Channels of each stage.
    blocks
        Of each stage.
    probability
        Of leaving the last block out in training, see `StochasticDepth`; that of earlier ones rises with their number.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3, probability: float = 0.0) -> None:
        layers: list[nn.Module] = [ConvNorm(1, widths[0])]
        inputs, count = widths[0], blocks * len(widths)
        for stage, width in enumerate(widths):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                layers.append(BasicBlock(inputs, width, stride, probability * len(layers) / count))
                inputs = width
        super().__init__(*layers, Head(inputs))


class WithExits(nn.Module):
    """A network with heads on the way; returns the logits of all, the earliest first.

    A head halves the picture and doubles the channels before it takes the mean (as in Teerapittayanon et al.,
    "BranchyNet", ICPR 2016), since a mean over early features says little.

    Parameters
    ----------
    network
        Layers in a row; they become a part of this module.
    widths
        Channels behind each layer that a head follows, by its index.
    """

    def __init__(self, network: nn.Sequential, widths: Mapping[int, int]) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict(
            {
                str(index): nn.Sequential(ConvNorm(width, 2 * width, stride=2), Head(2 * width))
                for index, width in widths.items()
            }
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        exits = []
        for index, layer in enumerate(self.network):
            x = layer(x)
            if str(index) in self.heads:
                exits.append(self.heads[str(index)](x))
        return *exits, x


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 to fewer; with a shortcut where extents stay."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1, activation=nn.ReLU6) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6)
        self.project = ConvNorm(hidden, outputs, 1, activation=None)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Sequential):
    """Inverted residuals in four stages; 9 M multiply-adds.

    Method: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, with fewer blocks.
    """

    # expansion, outputs, blocks, stride of the first
    STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 48, 3, 2), (4, 64, 2, 1))

    def __init__(self, stem: int = 16, last: int = 256) -> None:
        layers: list[nn.Module] = [ConvNorm(1, stem, activation=nn.ReLU6)]
        inputs = stem
        for expansion, outputs, blocks, stride in self.STAGES:
            for index in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if not index else 1, expansion))
                inputs = outputs
        super().__init__(*layers, ConvNorm(inputs, last, 1, activation=nn.ReLU6), Head(last))
