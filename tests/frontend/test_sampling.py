"""Converters of resizing, sampling at computed places, windows as columns, and layers with computed weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

IMAGE, VOLUME = (2, 5, 9, 11), (2, 5, 4, 5, 6)

RESIZED = {
    "bilinear": {"size": (17, 13), "mode": "bilinear"},
    "bilinear, by factors": {"scale_factor": (1.7, 0.6), "mode": "bilinear"},
    "bicubic": {"size": (17, 13), "mode": "bicubic"},
    "bicubic, aligned": {"scale_factor": 1.7, "mode": "bicubic", "align_corners": True},
    "bicubic, one axis": {"size": (9, 20), "mode": "bicubic"},
    "bilinear, antialiased": {"size": (4, 17), "mode": "bilinear", "antialias": True},
    "bicubic, antialiased": {"scale_factor": 0.6, "mode": "bicubic", "antialias": True},
    "nearest exact": {"size": (5, 13), "mode": "nearest-exact"},
    "area": {"size": (4, 5), "mode": "area"},
}


@pytest.mark.parametrize("name", RESIZED)
def test_resized(name, check):
    check(lambda x: F.interpolate(x, **RESIZED[name]), torch.randn(IMAGE))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [{"size": (7, 5, 3)}, {"scale_factor": (2, 1.3, 1)}])
def test_resized_volume(size, align, check):
    graph = check(lambda x: F.interpolate(x, **size, mode="trilinear", align_corners=align), torch.randn(VOLUME))
    assert {op.name for op in graph.ops if op.inputs} == {"matmul", "reshape"}


def test_filters_are_products(check):
    graph = check(lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True), torch.randn(IMAGE))
    assert [op.name for op in graph.ops if op.inputs] == ["matmul", "matmul"]


def test_interpolation_is_one_op(check):
    graph = check(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), torch.randn(IMAGE))
    assert [op.name for op in graph.ops] == ["resize"]


def test_interpolated_bytes(check):
    check(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), torch.randint(0, 255, IMAGE, dtype=torch.uint8))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode, padding, align, check):
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    grid = torch.rand(2, 6, 7, 2) * 5 - 2.5
    check(lambda x, grid: F.grid_sample(x, grid, **options), torch.randn(IMAGE), grid)
    if mode != "bicubic":
        grid = torch.rand(2, 3, 4, 5, 3) * 5 - 2.5
        check(lambda x, grid: F.grid_sample(x, grid, **options), torch.randn(VOLUME), grid)


def test_reflection_within_one_element(check):
    options = {"padding_mode": "reflection", "align_corners": True}
    check(lambda x, grid: F.grid_sample(x, grid, **options), torch.randn(2, 3, 1, 4), torch.rand(2, 2, 2, 2) * 4 - 2)


def test_affine_grid(check):
    check(lambda theta: F.affine_grid(theta, (2, 3, 5, 6), align_corners=False), torch.randn(2, 2, 3))


@pytest.mark.parametrize("shape", [IMAGE, IMAGE[1:]])
def test_windows_as_columns_and_back(shape, check):
    def there_and_back(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = F.unfold(x, (3, 2), 2, 1, (2, 1))
        return columns, F.fold(columns, x.shape[-2:], (3, 2), 2, 1, (2, 1))

    check(there_and_back, torch.randn(shape))


TRANSPOSED = {
    "output padding": lambda: nn.ConvTranspose3d(6, 4, 3, 2, 1, output_padding=1),
    "phases without taps": lambda: nn.ConvTranspose3d(6, 4, (1, 2, 3), (3, 1, 2)),
    "groups": lambda: nn.ConvTranspose3d(6, 9, (2, 3, 4), (3, 1, 2), (0, 1, 2), groups=3, bias=False),
    "dilated, much cut off": lambda: nn.ConvTranspose3d(6, 4, 3, 2, 4, dilation=(3, 3, 3)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
@pytest.mark.parametrize("shape", [(2, 6, 3, 4, 5), (6, 3, 4, 5)])
def test_transposed_convolution_of_volumes(name, shape, check):
    check(TRANSPOSED[name](), torch.randn(shape))


@pytest.mark.parametrize("bias", [False, True])
def test_bilinear_layer(bias, check):
    check(nn.Bilinear(5, 6, 7, bias=bias), torch.randn(2, 3, 5), torch.randn(2, 3, 6))
