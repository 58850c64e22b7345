"""Converters of layers: convolution, pooling, normalisation, matrix products, attention, reductions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

IMAGE = (2, 6, 9, 8)

IMAGE_LAYERS = {
    "conv": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "conv stride dilation": lambda: nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(2, 3), bias=False),
    "conv groups": lambda: nn.Conv2d(6, 12, 3, groups=3),
    "conv depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1),
    "conv same, odd": lambda: nn.Conv2d(6, 4, 3, padding="same"),
    "conv same, asymmetric": lambda: nn.Conv2d(6, 4, (4, 2), padding="same"),
    "conv same, asymmetric, dilated": lambda: nn.Conv2d(6, 4, (2, 4), padding="same", dilation=(3, 1)),
    "conv valid": lambda: nn.Conv2d(6, 4, 3, padding="valid"),
    "conv reflect": lambda: nn.Conv2d(6, 4, 3, padding=2, padding_mode="reflect"),
    "conv circular": lambda: nn.Conv2d(6, 4, 3, padding=2, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed, dilated": lambda: nn.ConvTranspose2d(6, 4, (3, 2), (1, 3), (2, 1), dilation=(2, 1), bias=False),
    "transposed, groups": lambda: nn.ConvTranspose2d(6, 9, 4, stride=3, groups=3),
    "transposed depthwise": lambda: nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6),
    "batch norm": lambda: nn.BatchNorm2d(6, eps=1e-3),
    "batch norm without affine": lambda: nn.BatchNorm2d(6, affine=False),
    "group norm": lambda: nn.GroupNorm(3, 6),
    "group norm without affine": lambda: nn.GroupNorm(2, 6, affine=False),
    "instance norm": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance norm with statistics": lambda: nn.InstanceNorm2d(6, track_running_stats=True),
    "layer norm": lambda: nn.LayerNorm((9, 8), eps=1e-3),
    "layer norm without affine": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "layer norm without bias": lambda: nn.LayerNorm(8, bias=False),
    "rms norm": lambda: nn.RMSNorm(8),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool ceil": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "max pool dilated": lambda: nn.MaxPool2d((2, 3), 1, dilation=2),
    "avg pool": lambda: nn.AvgPool2d(3, 2, 1),
    "avg pool ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "avg pool without padding": lambda: nn.AvgPool2d((3, 2), 2, (1, 0), count_include_pad=False),
    "avg pool divisor": lambda: nn.AvgPool2d(3, 2, divisor_override=4),
    "avg pool divisor at borders": lambda: nn.AvgPool2d(3, 2, 1, True, False, divisor_override=4),
    "max pool indices": lambda: nn.MaxPool2d(3, 2, 1, 1, return_indices=True, ceil_mode=True),
    "adaptive max pool, unequal": lambda: nn.AdaptiveMaxPool2d((4, 3)),
    "adaptive max pool, unequal, indices": lambda: nn.AdaptiveMaxPool2d((4, 8), return_indices=True),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "adaptive avg pool": lambda: nn.AdaptiveAvgPool2d((3, 1)),
    "adaptive avg pool keeps": lambda: nn.AdaptiveAvgPool2d((None, 2)),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d((3, 4)),
    "linear": lambda: nn.Linear(8, 5),
    "linear without bias": lambda: nn.Linear(8, 5, bias=False),
    "softmax": lambda: nn.Softmax(dim=-1),
    "log softmax": lambda: nn.LogSoftmax(dim=1),
    "upsample nearest": lambda: nn.Upsample(scale_factor=2),
    "upsample bilinear": lambda: nn.Upsample(size=(12, 5), mode="bilinear", align_corners=True),
}


def shake(module: nn.Module) -> nn.Module:
    """Move all parameters and statistics away from zeros and ones."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(torch.rand_like(tensor))
    return module


VOLUME_LAYERS = {
    "conv": lambda: nn.Conv3d(4, 6, 3, padding=1),
    "conv stride dilation groups": lambda: nn.Conv3d(4, 6, (2, 1, 3), (1, 2, 1), (0, 1, 2), (2, 1, 1), groups=2),
    "conv same": lambda: nn.Conv3d(4, 6, (2, 3, 3), padding="same"),
    "batch norm": lambda: nn.Sequential(nn.Conv3d(4, 6, 1, bias=False), nn.BatchNorm3d(6), nn.ReLU()),
    "max pool": lambda: nn.MaxPool3d(3, 2, 1, (1, 2, 1), ceil_mode=True),
    "max pool indices": lambda: nn.MaxPool3d((2, 3, 2), return_indices=True),
    "avg pool": lambda: nn.AvgPool3d((2, 3, 2), 2, (1, 1, 0), ceil_mode=True),
    "avg pool without padding": lambda: nn.AvgPool3d(3, 2, 1, count_include_pad=False),
    "avg pool divisor": lambda: nn.AvgPool3d(3, 2, 1, divisor_override=2),
    "adaptive avg pool": lambda: nn.AdaptiveAvgPool3d((2, 5, 1)),
    "adaptive avg pool, unequal": lambda: nn.AdaptiveAvgPool3d((3, 2, 4)),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool3d((2, 5, 3)),
    "adaptive max pool, unequal, indices": lambda: nn.AdaptiveMaxPool3d((3, 2, 4), return_indices=True),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", VOLUME_LAYERS)
def test_volume_layer(name, check):
    check(shake(VOLUME_LAYERS[name]()), torch.randn(2, 4, 4, 5, 6))


def test_volume_without_a_batch(check):
    check(nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.MaxPool3d(2)), torch.randn(4, 4, 5, 6))


def test_indices_that_nothing_reads_are_not_computed(check):
    graph = check(lambda x: F.max_pool2d(x, 2, return_indices=True)[0], torch.randn(IMAGE))
    assert [op.name for op in graph.ops] == ["max_pool2d"]


def test_pooling_and_its_inverse(check):
    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(pooled * 2, places, (2, 2))

    check(there_and_back, torch.randn(2, 3, 6, 8))


# PyTorch says that odd padding costs a copy.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", IMAGE_LAYERS)
def test_image_layer(name, check):
    check(shake(IMAGE_LAYERS[name]()), torch.randn(IMAGE))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 4, 3, stride=2, padding=1),
        nn.Conv1d(6, 4, 4, padding="same", dilation=3),
        nn.Conv1d(6, 6, 3, groups=6, bias=False),
        nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1, groups=2),
        nn.BatchNorm1d(6),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(3),
    ],
    ids=str,
)
def test_sequence_layer(layer, check):
    check(shake(layer), torch.randn(2, 6, 11))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)], ids=str
)
def test_image_without_a_batch(layer, check):
    check(layer, torch.randn(IMAGE[1:]))


FUNCTIONS = {
    "matmul": lambda x: x @ x.mT,
    "matmul broadcast": lambda x: x @ x[0, 0].t(),
    "matrix times vector": lambda x: x @ x[0, 0, 0],
    "vector times matrix": lambda x: x[0, 0, :, 0] @ x[0, 0],
    "dot": lambda x: torch.dot(x[0, 0, 0], x[0, 0, 1]),
    "bmm": lambda x: torch.bmm(x[0], x[1].mT),
    "mm": lambda x: torch.mm(x[0, 0], x[0, 1].t()),
    "addmm": lambda x: torch.addmm(x[0, 0, 0, 0], x[0, 0], x[0, 1].t(), beta=0.5, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(x[0, :, :, :1], x[0], x[1].mT, alpha=0.25),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "outer": lambda x: torch.outer(x[0, 0, 0], x[0, 0, 1]),
    "linear with a vector": lambda x: F.linear(x, x[0, 0, 0]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "attention causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
    "attention boolean mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(9).bool()),
    "attention additive mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(9)),
    "attention grouped": lambda x: F.scaled_dot_product_attention(x, x[:, :3], x[:, 3:], enable_gqa=True),
    "mean": lambda x: (x.mean(), x.mean(1), x.mean((2, -1), keepdim=True)),
    "sum": lambda x: (x.sum(), x.sum(-1), x.sum((1, 2), keepdim=True), (x > 0).sum(1)),
    "amax amin": lambda x: (x.amax(1), x.amin((2, 3), keepdim=True), x.max(), x.min()),
    "max along": lambda x: (x.max(dim=1).values, x.min(dim=-1, keepdim=True)[0]),
    "any all": lambda x: ((x > 2).any(), (x > 0).any(1), (x > -9).all(-1), x.all()),
    "variance": lambda x: (x.var(), x.var(1), x.std((2, 3), correction=0), torch.var_mean(x, 1)[1]),
    "norms": lambda x: (x.norm(), F.normalize(x, dim=1), torch.linalg.vector_norm(x, 1, dim=2)),
    "logsumexp": lambda x: x.logsumexp(1),
    "softmax of integers": lambda x: (x * 3).int().softmax(-1, dtype=torch.float32),
    "reduce a scalar": lambda x: x[0, 0, 0, 0].mean() + x[0, 0, 0, 0].sum(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name, check):
    check(FUNCTIONS[name], torch.randn(IMAGE))


@pytest.mark.parametrize("trainable", [True, False])
def test_transformer_layer(trainable, check):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(trainable)
    check(shake(layer), torch.randn(2, 5, 8))


def test_relu6_is_one_clamp(check):
    graph = check(nn.ReLU6(), torch.randn(3) * 9)
    assert [(op.name, op.attrs.min, op.attrs.max) for op in graph.ops] == [("clamp", 0.0, 6.0)]
