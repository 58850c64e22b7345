"""Attention heads go with their query, key and value and with what reads them; so do groups of queries with one key."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import tersor
from tersor.passes import run_passes
from tersor.tests.passes.pruning.zeroing import check_exact

WIDTH, HEADS, TOKENS = 24, 4, 5
SIZE = WIDTH // HEADS


class Separate(nn.Module):
    """Three projections; ``keys`` heads of keys and values serve all queries."""

    def __init__(self, keys: int = HEADS) -> None:
        super().__init__()
        self.keys = keys
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, keys * SIZE) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, enable_gqa=self.keys != HEADS)


class Repeated(Separate):
    """Keys and values are repeated by the model itself."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (one.repeat_interleave(HEADS // self.keys, dim=1) for one in (k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Products(Separate):
    """In steps, with a bias for each head and pair, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * TOKENS - 1, HEADS))
        places = torch.arange(TOKENS)
        self.places = (places[:, None] - places + TOKENS - 1).flatten()

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.places].view(TOKENS, TOKENS, HEADS).permute(2, 0, 1)
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(SIZE) + bias, -1) @ v


class Packed(nn.Module):
    """One projection, split as in most vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.qkv(x))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.reshape(*x.shape[:2], 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)


class Interleaved(Packed):
    """Query, key and value of a head stand side by side, as in GPT-NeoX."""

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.unflatten(-1, (HEADS, 3 * SIZE)).transpose(1, 2).chunk(3, dim=-1)


class PyTorchs(nn.Module):
    """`torch.nn.MultiheadAttention`, which merges heads and batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def imported(model: nn.Module) -> tersor.ir.Graph:
    torch.manual_seed(0)
    return tersor.from_torch(model.eval(), torch.randn(2, TOKENS, WIDTH))


@pytest.mark.parametrize("kind", [Separate, Products, Packed, Interleaved, PyTorchs])
@pytest.mark.parametrize("seed", [0, 1])
def test_heads(kind: type[nn.Module], seed: int):
    (group,) = check_exact(imported(kind()), seed=seed).groups
    assert group.size == HEADS
    assert group.width == {Packed: 3, Interleaved: 3, PyTorchs: 3}.get(kind, 1) * SIZE


@pytest.mark.parametrize("kind", [Separate, Repeated])
@pytest.mark.parametrize("keys", [1, 2])
def test_grouped_queries_go_with_their_key(kind: type[Separate], keys: int):
    channels = check_exact(imported(kind(keys)))
    if keys == 1:
        assert not channels.groups  # the only key cannot go
    else:
        (group,) = channels.groups
        assert (group.size, group.width) == (keys, HEADS // keys * SIZE)


def test_two_heads_of_a_packed_projection():
    """Where fewer ties would take query, key and value for channels."""

    class Two(Packed):
        def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.reshape(*x.shape[:2], 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)

    (group,) = check_exact(imported(Two())).groups
    assert (group.size, group.width) == (2, 3 * WIDTH // 2)


def test_a_transformer_layer_loses_heads_and_hidden_units():
    graph = imported(nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True))
    channels = check_exact(graph)
    assert sorted(group.size for group in channels.groups) == [HEADS, 64]
    small = run_passes(graph, "prune-channels{macs=0.4}")
    assert small.cost().macs <= 0.4 * graph.cost().macs
    module = small.to_torch()
    x = torch.randn(2, TOKENS, WIDTH)
    torch.testing.assert_close(module(x), small.evaluate(x)[0])


def test_where_heads_must_stay_their_sizes_go():
    class Seen(Products):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = (layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k))
            return torch.softmax(q @ k.transpose(-1, -2), -1)

    (group,) = check_exact(imported(Seen())).groups
    assert (group.size, group.width) == (SIZE, HEADS)


class Single(nn.Module):
    """One head of whole images, by products, as in GANs; the sums run over channels that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.q, self.k, self.v = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return self.last(x + (v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


def test_channels_that_products_sum_over():
    torch.manual_seed(0)
    channels = check_exact(tersor.from_torch(Single().eval(), torch.randn(2, 3, 3, 5)))
    assert sorted(group.size for group in channels.groups) == [4, 8]


def test_sums_of_products_that_are_not_zero_stay():
    class Sigmoids(Single):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = (torch.sigmoid(layer(self.first(x))).flatten(2) for layer in (self.q, self.k))
            return torch.cat([self.v(self.first(x)).flatten(2), torch.softmax(q.transpose(1, 2) @ k, -1)], 1)

    torch.manual_seed(0)
    channels = check_exact(tersor.from_torch(Sigmoids().eval(), torch.randn(2, 3, 3, 5)))
    assert [group.layers[0].location for group in channels.groups] == ["first"]
    assert any("matmul" in reason and "reads all channels together" in reason for _, reason in channels.held)
