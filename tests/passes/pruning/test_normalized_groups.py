"""Channels that a group norm normalises together go together, and only they; those of an instance norm go alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tersor
from tersor.passes import run_passes
from tersor.tests.passes.pruning.zeroing import check_exact


def network(*norms: nn.Module, channels: int = 24) -> nn.Sequential:
    """A convolution, the norms with a nonlinearity each, and a convolution."""
    layers = [layer for norm in norms for layer in (norm, nn.Sigmoid())]
    return nn.Sequential(nn.Conv2d(3, channels, 3), *layers, nn.Conv2d(channels, 4, 1))


def graph_of(model: nn.Module, *shape: int) -> tersor.ir.Graph:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # else norms neither scale nor shift
    return tersor.from_torch(model.eval(), torch.randn(shape or (2, 3, 6, 6)))


@pytest.mark.parametrize("groups", [2, 3, 6, 12])
def test_groups_of_a_group_norm_go_as_a_whole(groups: int):
    channels = check_exact(graph_of(network(nn.GroupNorm(groups, 24))))
    (group,) = channels.groups
    assert (group.size, group.width) == (groups, 24 // groups)


def test_a_norm_over_all_channels_counts_zeros_that_went():
    graph = graph_of(network(nn.GroupNorm(1, 24)))
    (group,) = check_exact(graph).groups
    assert (group.size, group.width) == (24, 1)
    text = str(run_passes(graph, "prune-channels{ratio=0.25}"))
    assert "absent=96" in text  # 6 channels of 4 x 4 positions
    again = run_passes(graph, "prune-channels{ratio=0.25},prune-channels{ratio=0.5}")
    assert "absent=240" in str(again) and check_exact(again).groups


def test_a_norm_of_what_is_not_zero_stays():
    channels = check_exact(graph_of(network(nn.Identity(), nn.GroupNorm(1, 24))))
    assert not channels.groups
    assert "layer_norm at '3' reads all channels together" in channels.held[0][1]


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(24, affine=True), nn.InstanceNorm2d(24), nn.GroupNorm(24, 24)])
def test_channels_of_an_instance_norm_go_alone(norm: nn.Module):
    (group,) = check_exact(graph_of(network(norm))).groups
    assert (group.size, group.width) == (24, 1)


def test_two_norms_with_other_groups_tie_what_both_read():
    (group,) = check_exact(graph_of(network(nn.GroupNorm(12, 24), nn.GroupNorm(8, 24)))).groups
    assert (group.size, group.width) == (4, 6)  # 2 channels a group and 3 meet every 6 channels


def test_groups_that_meet_everywhere_cannot_go():
    channels = check_exact(graph_of(network(nn.GroupNorm(3, 24), nn.GroupNorm(8, 24))))
    assert not channels.groups
    assert channels.held[0][1] == "they can only go all at once"


def test_norm_over_channels_apart_from_positions():
    """As in ConvNeXt: the stream of channels, which the norm reads, and the hidden ones of the two linear layers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.narrow(nn.functional.gelu(self.wide(self.norm(x.permute(0, 2, 3, 1)))))
            return x + y.permute(0, 3, 1, 2)

    channels = check_exact(graph_of(nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 4, 1))))
    assert [(group.size, group.layers[0].location) for group in channels.groups] == [(8, "0"), (32, "1.wide")]


def test_a_small_unet():
    class Step(nn.Module):
        def __init__(self, inner: nn.Module, width: int) -> None:
            super().__init__()
            self.inner = inner
            self.before = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU())
            self.after = nn.Sequential(nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, width, 3, padding=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.before(x)
            half = nn.functional.avg_pool2d(x, 2)
            y = nn.functional.interpolate(self.inner(half), scale_factor=2.0, mode="bilinear")
            return self.after(torch.cat([x, y], 1))

    model = nn.Sequential(nn.Conv2d(3, 16, 1), Step(Step(nn.Identity(), 16), 16), nn.Conv2d(16, 3, 1))
    graph = graph_of(model, 1, 3, 8, 8)
    assert len(check_exact(graph).groups) >= 4
    small = run_passes(graph, "prune-channels{macs=0.7}")
    assert small.cost().macs <= 0.7 * graph.cost().macs


class RootMeanSquare(nn.Module):
    """As in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Response(nn.Module):
    """Global response normalisation, as in ConvNeXt V2, and a sum over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = self.weight * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.bias + x
        return x * torch.tanh(x.sum(-1, keepdim=True))


class Embedded(nn.Module):
    """A small transformer of words: what is added, normalised and read has the embedding dimension."""

    def __init__(self, first: bool, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first = first  # normalise before each part, or behind it as in BERT
        self.words, self.places = nn.Embedding(20, 12), nn.Parameter(torch.zeros(1, 5, 12))
        self.norm, self.last = norm(12), norm(12)
        self.part = nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x) + self.places
        x = x + self.part(self.norm(x)) if self.first else self.norm(x + self.part(x))
        return self.head(self.last(x).mean(1))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("norm", [nn.LayerNorm, RootMeanSquare, Response])
def test_embedding_dimension(norm: type[nn.Module], first: bool):
    torch.manual_seed(0)
    model = Embedded(first, norm).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    graph = tersor.from_torch(model, torch.randint(0, 20, (2, 5)))
    channels = check_exact(graph)
    assert sorted(group.size for group in channels.groups) == [12, 30]
    again = run_passes(graph, "prune-channels{ratio=0.3,scope=layer}")
    check_exact(again, seed=1)
    words = [place for group in channels.groups for place in group.places if place.weight == "words.weight"]
    assert [place.dim for place in words] == [1]
