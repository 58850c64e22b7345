"""Layers as machine code, several in one program: layouts around them, epilogues, narrow numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tersor.frontend import from_torch
from tersor.ir import Graph
from tersor.ir.ops import (
    AddOp,
    AvgPool3dOp,
    ConcatOp,
    Conv3dOp,
    ConvTranspose2dOp,
    MaxPool3dOp,
    MeanOp,
    ReluOp,
    SigmoidOp,
    SliceOp,
)
from tersor.passes import run_passes

from .compiled import builder, check, lowered, templates


def transposed() -> Graph:
    b = builder(x=(2, 24, 5, 6), picture=(1, 3, 4, 4))
    x, picture = b.graph.inputs
    up = b.op(ConvTranspose2dOp, x, b.weight(20, 24, 4, 4), b.weight(20), stride=(2, 2), padding=(1, 1))
    residual = b.op(ReluOp, b.op(AddOp, up, b.op(SigmoidOp, up)))
    spread = b.op(ConvTranspose2dOp, x, b.weight(17, 24, 2, 3), None, stride=(2, 1), dilation=(3, 2))
    grouped = b.op(ConvTranspose2dOp, residual, b.weight(10, 10, 3, 3), None, stride=(3, 3), groups=2)
    first = b.op(ConvTranspose2dOp, picture, b.weight(16, 3, 3, 3), b.weight(16), stride=(2, 2), output_padding=(1, 1))
    few = b.op(
        ConvTranspose2dOp, b.op(ReluOp, first), b.weight(2, 16, 4, 4), b.weight(2), stride=(4, 4), padding=(1, 0)
    )
    return b.done(residual, spread, b.op(SigmoidOp, grouped), b.op(SigmoidOp, few))


def test_transposed_convolutions():
    graph = transposed()
    called = templates(lowered(graph, "O3,layout"))
    assert called.count("conv2d_transposed") == 4
    assert "elementwise" not in called[:3]  # what follows is in the epilogue
    check(graph, pipeline="O3,layout")


def test_transposed_convolutions_in_bf16():
    narrow = run_passes(transposed(), "O3,to-bf16")
    assert "bf16" in str(next(op for op in narrow.ops if op.name == "fused").result.type)
    results = zip(check(narrow, pipeline="layout", tolerance=2e-2), narrow.outputs, strict=True)
    assert all(torch.isfinite(result).all() and result.shape == value.shape for result, value in results)


def volumes() -> Graph:
    b = builder(x=(2, 20, 4, 5, 6), clip=(1, 3, 5, 9, 8))
    x, clip = b.graph.inputs
    same: dict[str, Any] = {"padding": (1,) * 6}
    first = b.op(ReluOp, b.op(Conv3dOp, x, b.weight(24, 20, 3, 3, 3), b.weight(24), **same))
    second = b.op(AddOp, b.op(Conv3dOp, first, b.weight(24, 12, 3, 1, 1), None, padding=(1, 0, 0) * 2, groups=2), first)
    joined = b.op(ConcatOp, second, b.op(SliceOp, first, axis=1, start=8, stop=24), axis=1)
    pooled = b.op(SigmoidOp, b.op(MaxPool3dOp, joined, kernel=(3, 2, 3), stride=(2, 2, 1), padding=(1, 0, 1)))
    window: dict[str, Any] = {
        "kernel": (2, 3, 3),
        "stride": (1, 2, 2),
        "padding": (1, 1, 0),
        "ceil": True,
        "count_include_pad": False,
    }
    mean = b.op(MeanOp, b.op(AvgPool3dOp, second, **window), axes=(2, 3, 4), keepdim=True)
    kernel = b.weight(18, 3, 2, 5, 5)
    stem = b.op(Conv3dOp, clip, kernel, b.weight(18), stride=(2, 2, 2), padding=(1, 2, 2, 0, 2, 1), dilation=(2, 1, 1))
    point = b.op(Conv3dOp, b.op(ReluOp, stem), b.weight(5, 18, 1, 1, 1), b.weight(5))
    return b.done(pooled, mean, b.op(SigmoidOp, point))


def test_volumes():
    called = templates(lowered(volumes(), "O3,layout"))
    assert called.count("conv3d") == 4
    assert called.count("relayout") <= 4  # volumes stay in channel blocks
    check(volumes(), pipeline="O3,layout")


def test_volumes_in_bf16():
    check(run_passes(volumes(), "O3,to-bf16"), pipeline="layout", tolerance=2e-2)


class Moves(torch.nn.Module):
    """What moves elements of pictures about."""

    def forward(self, x: torch.Tensor, grid: torch.Tensor, volume: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled, places = F.max_pool2d(x, 3, 2, 1, return_indices=True)
        unpooled = F.max_unpool2d(pooled, places, (2, 2), (2, 2), output_size=x.shape[2:])
        columns = F.unfold(x, 3, padding=1, stride=2)
        sampled = F.grid_sample(x, grid, align_corners=False)
        far = F.grid_sample(x, grid, mode="nearest", padding_mode="reflection", align_corners=True)
        smaller = F.interpolate(x, scale_factor=0.6, mode="bicubic", antialias=True)
        unequal = F.adaptive_max_pool2d(x, (3, 5), return_indices=True)
        deep = F.conv_transpose3d(volume, torch.ones(4, 3, 2, 2, 3), stride=(2, 2, 1))
        return (unpooled, F.fold(columns, x.shape[2:], 3, padding=1, stride=2), sampled, far, smaller, *unequal, deep)


def test_moves_of_pictures():
    torch.manual_seed(0)
    inputs = (torch.randn(2, 5, 8, 10), torch.rand(2, 6, 7, 2) * 3 - 1.5, torch.randn(1, 4, 2, 3, 3))
    graph = from_torch(Moves(), inputs)
    check(graph, *inputs, pipeline="O3,layout")
    for ours, theirs in zip(graph.evaluate(*inputs), Moves()(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
