"""What the tests of training share: a small network, its data, graphs with notes, and a training loop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import tersor
from tersor.ir import Graph
from tersor.training import QuantizedModule

NOTES = "quantize-annotate,quantize-calibrate"
KEEP_NORMS = "quantize-annotate{keep_norms=true},quantize-calibrate"


class Block(nn.Module):
    """A layer and a depthwise one beside a shortcut, each with a batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.normalized = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self.norm(self.conv(x)))
        return functional.relu(x + self.normalized(self.depthwise(y)))


class Net(nn.Module):
    """Pictures [N, 1, 8, 8] to [N, 4]: a stem, a block, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Block(8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.block(self.stem(x)))
        return self.head(x.mean((2, 3)))


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy bars [count, 1, 8, 8]: which quarter they are in, and whether they stand or lie, is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        place = 1 + 4 * (label // 2) + int(torch.randint(0, 2, (), generator=generator))
        bar = image[0, :, place] if label % 2 else image[0, place]
        bar += 0.7
    return images, labels


def train(module: nn.Module, epochs: int = 3, rate: float = 0.02, batch: int = 16, decay: float = 0.0) -> None:
    """Any training loop: it knows nothing of quantization. The module is left in evaluation mode."""
    images, labels = pictures(320)
    optimizer = torch.optim.SGD(module.train().parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    for _ in range(epochs):
        for part, target in zip(images.split(batch), labels.split(batch), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(module(part), target).backward()
            optimizer.step()
    module.eval()


def accuracy(module: nn.Module, batch: int = 16) -> float:
    """Share of other pictures that a module recognises."""
    images, labels = pictures(320, seed=1)
    with torch.no_grad():
        found = torch.cat([module(part).argmax(1) for part in images.split(batch)])
    return (found == labels).double().mean().item()


def network() -> Net:
    """The network, trained in floating point."""
    torch.manual_seed(0)
    net = Net()
    train(net, epochs=4, rate=0.1)
    return net


def noted(net: nn.Module, pipeline: str = KEEP_NORMS, batch: int = 16) -> Graph:
    """The network as a graph with calibrated notes."""
    images, _ = pictures(64)
    return tersor.run_passes(tersor.from_torch(net, images[:batch]), pipeline, calibration=images)


def module_of(graph: Graph, quantizer: str = "lsq") -> QuantizedModule:
    """The module of a graph with notes or integers."""
    module = graph.to_torch(quantizer)
    assert isinstance(module, QuantizedModule) and not module.training
    return module
