"""Interpolation of images: compiled code beside the interpreter, which is PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor import from_torch, run_passes
from tersor.ir import DType, Graph, TensorType, ops
from tersor.ir.ops.resizing import ResizeAttrs

from .compiled import check, lowered, templates

SIZES = ({"scale_factor": 2}, {"scale_factor": (1.7, 0.6)}, {"size": (5, 40)}, {"size": (1, 1)}, {"size": (9, 20)})


class Resized(nn.Module):
    """One picture in several sizes."""

    def __init__(self, sizes: Sequence[Mapping], **how) -> None:
        super().__init__()
        self.sizes, self.how = sizes, how

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(F.interpolate(x, **size, **self.how) for size in self.sizes)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("blocked", [False, True])
def test_resized(mode, align, blocked):
    graph = from_torch(Resized(SIZES, mode=mode, align_corners=align), (torch.randn(2, 5, 9, 11),))
    assert [op.name for op in graph.ops] == ["resize"] * len(SIZES)
    check(graph, pipeline="layout" if blocked else "")


class Between(nn.Module):
    """Resizing between convolutions, whose channel blocks it takes, with what is fused behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.last = nn.Conv2d(20, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        skip = F.avg_pool2d(y, 1)
        small = F.interpolate(F.max_pool2d(y, 2), size=x.shape[2:], mode="bilinear")
        return F.interpolate(self.last(torch.relu(small + skip)), scale_factor=4, mode="bilinear").sigmoid()


def test_between_convolutions():
    torch.manual_seed(0)
    graph = run_passes(from_torch(Between(), (torch.randn(2, 3, 12, 10),)), "O3")
    called = templates(lowered(graph))
    assert called.count("resize") == 2
    assert "elementwise" not in called  # all of it is fused
    check(graph)


@pytest.mark.parametrize("pipeline", ["O3,to-bf16,layout", "O3,to-fp16,layout"])
def test_narrow_numbers(pipeline):
    torch.manual_seed(0)
    graph = run_passes(from_torch(Between(), (torch.randn(1, 3, 12, 10),)), pipeline, target="x86:native")
    assert {op.result.type.dtype for op in graph.ops if op.name == "resize"} <= {DType.BF16, DType.F16, DType.F32}
    check(graph, pipeline="", tolerance=2e-2)


def test_double_numbers():
    picture = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    graph = from_torch(Resized([{"size": (13, 40)}], mode="bilinear"), (picture,))
    check(graph, pipeline="", tolerance=1e-12)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_infinite_numbers_spread_as_in_pytorch(mode, align):
    x = torch.ones(1, 1, 5, 5)
    x[0, 0, 1, 4], x[0, 0, 4, 0], x[0, 0, 0, 0] = torch.inf, -torch.inf, torch.nan
    graph = from_torch(Resized([{"size": (10, 13)}], mode=mode, align_corners=align), (x,))
    check(graph, x, pipeline="")
    check(graph, x, pipeline="layout")


def test_many_taps_are_a_loop():
    """No way to place elements has so many now; the kernel does not depend on that."""
    from tersor.targets.machines.catalog import resolve_cpu
    from tersor.targets.templates.windows import resize

    spec = resize.ResizeSpec(1, 16, 40, 40, 4, 4, 20, 20, 16)
    assert len(resize.build(spec, resolve_cpu("x86:sapphirerapids")).script().splitlines()) < 80


def test_attributes_are_checked():
    for wrong, why in (
        ({"size": (0, 2)}, "size must be positive"),
        ({"size": (2, 2), "mode": "trilinear"}, "mode must be one of bilinear, bicubic"),
        ({"size": (2, 2), "scales": (-1.0, 0.0)}, "scales must be positive"),
    ):
        with pytest.raises(ValueError, match=why):
            ResizeAttrs(**wrong)
    graph = Graph("g", [("x", TensorType((2, 3, 4), DType.F32))])
    with pytest.raises(Exception, match="needs a 4-d operand of floating-point numbers"):
        ops.ResizeOp((graph.inputs[0],), ResizeAttrs((2, 2)))
