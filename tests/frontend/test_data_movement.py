"""Converters of operators that move and pick elements."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tersor

from .conftest import Lambda, assert_same

CASES = {
    "view": lambda x: x.view(2, -1),
    "reshape of a permutation": lambda x: x.permute(0, 2, 3, 1).reshape(2, -1, 3),
    "flatten": lambda x: x.flatten(1) + torch.flatten(x, 1, 3),
    "unflatten": lambda x: x.unflatten(1, (3, 2)),
    "squeeze": lambda x: x[:1, :, :1].squeeze() + x[:1, :, :1].squeeze(0).squeeze((0, 1)),
    "unsqueeze": lambda x: x.unsqueeze(1) + x.unsqueeze(-1)[..., 0].unsqueeze(1),
    "transpose": lambda x: x.transpose(1, -1) + x.swapaxes(-1, 1) + x.movedim(1, 3).movedim(1, 2).mT.transpose(2, 3),
    "t": lambda x: x[0, 0].t() + x[0, 1].T,
    "expand": lambda x: x[:, :1].expand(-1, 6, -1, -1) + x[:1].expand_as(x),
    "repeat": lambda x: x[0, 0].repeat(2, 3, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "slice": lambda x: x[:, 1:5:2, -3:, :-1] * 2,
    "slice to nothing": lambda x: x[:, 4:2].sum(),
    "select": lambda x: x[1] + x.select(0, -1),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "chunk": lambda x: x.chunk(4, dim=1),
    "split": lambda x: (*x.split(4, dim=1), *x.split([1, 2, 3], dim=1), *x.tensor_split(4, dim=2)),
    "unbind": lambda x: x.unbind(1),
    "cat": lambda x: torch.cat([x, x[:, :2], x * 2], dim=1),
    "cat promotes": lambda x: torch.cat([x, x.long()], dim=-1),
    "cat skips empty": lambda x: torch.cat([x, torch.zeros(0)], dim=1),
    "cat of nothing": lambda x: torch.cat([x[:, :0], x, x[:, 2:2]], dim=1),
    "reductions of nothing": lambda x: (
        *(getattr(x[:, 2:2], name)(1) for name in ("sum", "prod", "mean")),
        (x[:0] > 0).any(0, keepdim=True) | (x[:0] > 0).all(),
        x[..., :0] @ x[..., :0].mT,
    ),
    "stack": lambda x: torch.stack([x, x + 1], dim=-1) + torch.stack([x, x], dim=4),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=2.5),
    "pad crops": lambda x: F.pad(x, (-1, 2, 2, -1)),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)),
    "pad with infinity": lambda x: F.pad(x, (1, 1), value=float("-inf")).amax(-1),
    "pad integers": lambda x: F.pad((x * 4).long(), (1, 1), value=3),
    "pad reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "flip": lambda x: x.flip(1, -1),
    "roll": lambda x: x.roll(2, 1) + x.roll((1, -1), (2, 3)) + x.roll(5),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "index_select": lambda x: x.index_select(2, torch.tensor([4, 0, 0, 2])),
    "index one axis": lambda x: x[:, torch.tensor([5, 0, -1])],
    "index two axes": lambda x: x[:, torch.tensor([[5], [0]]), torch.tensor([1, -2, 0])],
    "index apart": lambda x: x[torch.tensor([0, 1, 1]), :, torch.tensor([3, -1, 2])],
    "gather": lambda x: x.gather(2, (x[:, :3, :4] > 0).long()),
    "write a slice": lambda x: torch.zeros(2, 6, 5, 4).slice_scatter(x[:, 1:3], 1, 2, 4),
    "write a row": lambda x: x.select_scatter(torch.ones(2, 5, 4), 1, -2),
}


@pytest.mark.parametrize("name", CASES)
def test_movement(name, check):
    check(CASES[name], torch.randn(2, 6, 5, 4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_embedding(dtype, check):
    check(nn.Embedding(10, 4, padding_idx=0), torch.tensor([[1, 9, 0], [3, 3, 2]], dtype=dtype))


def test_index_by_an_input(check):
    check(
        lambda x, i: (x[i], x[:, i], x.gather(1, i[None].expand(4, -1))),
        torch.randn(4, 5),
        torch.tensor([1, -4 % 4, 3]),
    )


def test_mask_lookup_as_in_transformers(check):
    mask = torch.tensor([[1, 1, 0]])
    check(lambda m: m.bool()[torch.zeros(1, 1, dtype=torch.long), torch.arange(3)], mask)


def test_identity_movements_make_no_op(check):
    graph = check(lambda x: x.reshape(2, 3).permute(0, 1).expand(2, 3)[:, 0:3] + 1, torch.randn(2, 3))
    assert [op.name for op in graph.ops] == ["full", "add"]


def test_values_without_elements_compiled():
    def everything(x):
        return CASES["cat of nothing"](x), *CASES["reductions of nothing"](x)

    x = torch.randn(2, 6, 5, 4)
    for actual, expected in zip(tersor.compile(Lambda(everything), (x,))(x), everything(x), strict=True):
        assert_same(actual, expected)


def test_strides_of_permuted_memory(check):
    """As in Longformer: strides count in memory, whatever the order of the dimensions is."""
    check(lambda x: (x * 2).permute(1, 0, 2).reshape(6, 4, 5).as_strided((3, 4, 5), (10, 5, 1)), torch.randn(4, 6, 5))
    check(lambda x: (x * 2).t().as_strided((2, 4), (1, 5)), torch.randn(4, 5))
