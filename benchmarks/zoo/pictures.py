"""Networks for pictures that no package defines without more: small definitions of ours, named after what they show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .entry import Entry, Input, Integers, Numbers
from .layers import Apply, Concat, First, conv, residual, separable

PICTURE = (Numbers((1, 3, 64, 64)),)
LOW = (Numbers((1, 3, 32, 32)),)
CODE = (Numbers((1, 64)),)


class UNet(nn.Module):
    """Ronneberger et al. 2015, with transposed convolutions or bilinear resizing on the way up."""

    def __init__(self, up: str = "transposed", depth: int = 3, width: int = 16) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.first = nn.Sequential(conv(3, width), conv(width, width))
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), conv(a, b), conv(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(self._larger(up, b, a) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(nn.Sequential(conv(2 * a, a), conv(a, a)) for a, _ in reversed(pairs))
        self.last = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _larger(kind: str, channels: int, features: int) -> nn.Module:
        if kind == "transposed":
            return nn.ConvTranspose2d(channels, features, 2, 2)
        resize = nn.Upsample(scale_factor=2, mode=kind, align_corners=None if kind == "nearest" else True)
        return nn.Sequential(resize, nn.Conv2d(channels, features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [self.first(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.last(x)


def espcn(scale: int = 3) -> nn.Module:
    """Shi et al. 2016: the picture is enlarged by reordering channels."""
    layers = (nn.Conv2d(3, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh())
    return nn.Sequential(*layers, nn.Conv2d(32, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))


def srcnn() -> nn.Module:
    """Dong et al. 2014, after bicubic enlargement."""
    layers = (nn.Conv2d(3, 64, 9, padding=4), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.ReLU())
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), *layers, nn.Conv2d(32, 3, 5, padding=2))


def fsrcnn() -> nn.Module:
    """Dong et al. 2016: a transposed convolution at the end."""
    middle = [layer for _ in range(3) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12))]
    first = (nn.Conv2d(3, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12))
    return nn.Sequential(*first, *middle, nn.Conv2d(12, 56, 1), nn.PReLU(56), nn.ConvTranspose2d(56, 3, 9, 2, 4, 1))


class Falsr(nn.Module):
    """After FALSR (Chu et al. 2019): cells of grouped convolutions with dense connections, bicubic residual."""

    def __init__(self, width: int = 24, cells: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        grouped = (nn.Conv2d(width, width, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(width, width, 1))
        self.cells = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width * (cell + 1), width, 1), residual(*grouped), nn.ReLU())
            for cell in range(cells)
        )
        self.last = nn.Sequential(nn.Conv2d(width * (cells + 1), 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.first(x)]
        for cell in self.cells:
            features.append(cell(torch.cat(features, 1)))
        resized = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return self.last(torch.cat(features, 1)) + resized


def edsr(width: int = 32) -> nn.Module:
    """Lim et al. 2017: residual blocks without normalisation."""

    def block():
        return residual(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    body = residual(*(block() for _ in range(4)))
    last = (nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), body, *last)


class PixelAttention(nn.Module):
    """Attention over channels, as RCAN has it (Zhang et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


def rcan(width: int = 32) -> nn.Module:
    """Residual channel attention."""

    def layers():
        return (nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    body = residual(*(residual(*layers(), PixelAttention(width)) for _ in range(3)))
    last = (nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), body, *last)


def style_transfer() -> nn.Module:
    """Johnson et al. 2016: reflected borders, instance normalisation, nearest resizing."""

    def layer(channels: int, features: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, features, kernel, stride)
        return [nn.ReflectionPad2d(kernel // 2), convolution, nn.InstanceNorm2d(features, affine=True), nn.ReLU()]

    blocks = [residual(*layer(64, 64, 3), *layer(64, 64, 3)[:3]) for _ in range(3)]
    down = [*layer(3, 16, 9), *layer(16, 32, 3, 2), *layer(32, 64, 3, 2)]
    up = [nn.Upsample(scale_factor=2), *layer(64, 32, 3), nn.Upsample(scale_factor=2), *layer(32, 16, 3)]
    return nn.Sequential(*down, *blocks, *up, nn.ReflectionPad2d(4), nn.Conv2d(16, 3, 9))


class AdaIN(nn.Module):
    """Huang and Belongie 2017: one picture takes mean and deviation of another's features."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16), conv(16, 32, stride=2), conv(32, 64, stride=2))
        self.decoder = nn.Sequential(
            nn.Upsample(scale_factor=2), conv(64, 32), nn.Upsample(scale_factor=2), conv(32, 3)
        )

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        (content, style) = (self.encoder(content), self.encoder(style))
        mean, deviation = (
            f(style, (2, 3)) for f in (partial(torch.mean, keepdim=True), partial(torch.std, keepdim=True))
        )
        return self.decoder(F.instance_norm(content) * deviation + mean)


class Pyramid(nn.Module):
    """Four maps of a picture, each half as large as the one before."""

    def __init__(self, width: int = 16, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            conv(width if level else 3, width, stride=2, activation=activation) for level in range(4)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class FeaturePyramid(nn.Module):
    """Lin et al. 2017: maps from coarse to fine are added."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = Pyramid(width)
        self.lateral = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(4))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = [lateral(one) for lateral, one in zip(self.lateral, self.backbone(x), strict=True)]
        for level in (2, 1, 0):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[2:])
        return [smooth(one) for smooth, one in zip(self.smooth, maps, strict=True)]


class BiFpn(nn.Module):
    """EfficientDet's neck and head (Tan et al. 2020): maps are fused both ways by normalised weights."""

    def __init__(self, width: int = 16, classes: int = 10, anchors: int = 9) -> None:
        super().__init__()
        self.backbone = Pyramid(width, nn.SiLU)
        self.down_weights = nn.Parameter(torch.rand(3, 2))
        self.up_weights = nn.Parameter(torch.rand(3, 3))
        self.down = nn.ModuleList(separable(width, width, activation=nn.SiLU) for _ in range(3))
        self.up = nn.ModuleList(separable(width, width, activation=nn.SiLU) for _ in range(3))
        self.classes = nn.Conv2d(width, classes * anchors, 3, padding=1)
        self.boxes = nn.Conv2d(width, 4 * anchors, 3, padding=1)
        self.shape = classes

    @staticmethod
    def fuse(weights: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        weights = F.relu(weights)
        weights = weights / (weights.sum() + 1e-4)
        first, *others = (weights[index] * one for index, one in enumerate(maps))
        return F.silu(sum(others, first))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone(x)
        down = [maps[-1]]
        for level in (2, 1, 0):
            larger = F.interpolate(down[0], scale_factor=2.0, mode="nearest")
            down.insert(0, self.down[level](self.fuse(self.down_weights[level], maps[level], larger)))
        up = [down[0]]
        for level in range(3):
            smaller = F.max_pool2d(up[-1], 3, 2, 1)
            up.append(self.up[level](self.fuse(self.up_weights[level], maps[level + 1], down[level + 1], smaller)))

        def flat(one, last):
            return one.permute(0, 2, 3, 1).reshape(one.shape[0], -1, last)

        classes = torch.cat([flat(self.classes(one), self.shape) for one in up], 1)
        return classes.sigmoid(), torch.cat([flat(self.boxes(one), 4) for one in up], 1)


class Ssd(nn.Module):
    """Liu et al. 2016: classes and boxes at several scales, decoded from default boxes."""

    defaults: torch.Tensor

    def __init__(self, width: int = 16, classes: int = 21, anchors: int = 4) -> None:
        super().__init__()
        self.backbone = Pyramid(width)
        self.classes = nn.ModuleList(nn.Conv2d(width, anchors * classes, 3, padding=1) for _ in range(4))
        self.boxes = nn.ModuleList(nn.Conv2d(width, anchors * 4, 3, padding=1) for _ in range(4))
        count = anchors * sum((64 // 2**level) ** 2 for level in range(1, 5))
        self.register_buffer("defaults", torch.rand(count, 4) + 0.1)
        self.count = classes

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(x)

        def flat(layers, last):
            return torch.cat(
                [
                    layer(one).permute(0, 2, 3, 1).contiguous().view(one.shape[0], -1, last)
                    for layer, one in zip(layers, maps, strict=True)
                ],
                1,
            )

        offsets = flat(self.boxes, 4)
        centre = self.defaults[:, :2] + offsets[..., :2] * 0.1 * self.defaults[:, 2:]
        size = self.defaults[:, 2:] * torch.exp(offsets[..., 2:] * 0.2)
        boxes = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
        return {"scores": F.softmax(flat(self.classes, self.count), -1), "boxes": boxes}


class YoloHead(nn.Module):
    """Redmon and Farhadi 2018: a map of boxes around anchors, decoded with a grid."""

    def __init__(self, channels: int, stride: int, classes: int = 10) -> None:
        super().__init__()
        self.layer, self.outputs, self.stride = nn.Conv2d(channels, 3 * (classes + 5), 1), classes + 5, stride
        self.register_buffer("anchors", torch.rand(1, 3, 1, 1, 2) * 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        found = self.layer(x).view(batch, 3, self.outputs, height, width).permute(0, 1, 3, 4, 2).contiguous()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, height, width, 2)
        place = (found[..., :2].sigmoid() + grid) * self.stride
        size = found[..., 2:4].exp() * self.anchors
        return torch.cat((place, size, found[..., 4:].sigmoid()), -1).view(batch, -1, self.outputs)


class YoloV3(nn.Module):
    """Two scales, the finer with features of the coarser."""

    def __init__(self) -> None:
        super().__init__()
        leaky = partial(nn.LeakyReLU, 0.1)
        widths = (3, 16, 32, 64)
        self.fine = nn.Sequential(*(conv(a, b, 3, 2, activation=leaky) for a, b in itertools.pairwise(widths)))
        self.coarse = nn.Sequential(conv(64, 64, 3, 2, activation=leaky), conv(64, 64, activation=leaky))
        self.reduce = conv(64, 32, 1, activation=leaky)
        self.heads = nn.ModuleList((YoloHead(64, 16), YoloHead(96, 8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        larger = F.interpolate(self.reduce(coarse), scale_factor=2)
        return torch.cat((self.heads[0](coarse), self.heads[1](torch.cat((larger, fine), 1))), 1)


class CrossStage(nn.Module):
    """The block of YOLOv5 and v8: one half of the channels goes through residual blocks, all are put together."""

    def __init__(self, channels: int, depth: int = 1) -> None:
        super().__init__()
        half = channels // 2

        def block():
            return residual(conv(half, half, activation=nn.SiLU), conv(half, half, activation=nn.SiLU))

        self.first = conv(channels, channels, 1, activation=nn.SiLU)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.last = conv((2 + depth) * half, channels, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class PooledPyramid(nn.Module):
    """Three poolings one after the other, side by side: SPPF."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels // 2, 1, activation=nn.SiLU)
        self.last = conv(2 * channels, channels, 1, activation=nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.first(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.last(torch.cat(maps, 1))


class YoloV8(nn.Module):
    """Boxes as expected values of distributions (DFL), without anchors."""

    def __init__(self, width: int = 32, classes: int = 10, bins: int = 16) -> None:
        super().__init__()
        down = partial(conv, kernel=3, stride=2, activation=nn.SiLU)
        self.stem = nn.Sequential(down(3, width), down(width, width), CrossStage(width))
        self.fine = nn.Sequential(down(width, width), CrossStage(width, 2))
        self.coarse = nn.Sequential(down(width, width), CrossStage(width), PooledPyramid(width))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * bins, 1) for _ in range(2))
        self.classes = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(2))
        self.bins = bins

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(self.stem(x))
        maps = (fine, self.coarse(fine))
        boxes = torch.cat([layer(one).flatten(2) for layer, one in zip(self.boxes, maps, strict=True)], 2)
        classes = torch.cat([layer(one).flatten(2) for layer, one in zip(self.classes, maps, strict=True)], 2)
        spread = boxes.view(boxes.shape[0], 4, self.bins, -1).transpose(1, 2).softmax(1)
        distance = (spread * torch.arange(self.bins, dtype=x.dtype).view(1, -1, 1, 1)).sum(1)
        near, far = distance.chunk(2, 1)
        return torch.cat(((near + far) / 2, far - near, classes.sigmoid()), 1)


def focus(x: torch.Tensor) -> torch.Tensor:
    """Every second row and column as channels: the first layer of YOLOv5 and YOLOX."""
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def yolox_stem() -> nn.Module:
    """Slices of the picture, then a cross-stage block."""
    return nn.Sequential(Apply(focus), conv(12, 32, activation=nn.SiLU), CrossStage(32), PooledPyramid(32))


class ContextModule(nn.Module):
    """ThunderNet's context enhancement and spatial attention (Qin et al. 2019)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.backbone = Pyramid(width)
        self.layers = nn.ModuleList(nn.Conv2d(width, 24, 1) for _ in range(3))
        self.proposals = separable(24, 32)
        self.attention = nn.Sequential(nn.Conv2d(32, 24, 1), nn.BatchNorm2d(24), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, _, c4, c5 = self.backbone(x)
        whole = F.adaptive_avg_pool2d(c5, 1)
        context = self.layers[0](c4) + F.interpolate(self.layers[1](c5), scale_factor=2) + self.layers[2](whole)
        proposals = self.proposals(context)
        return proposals, context * self.attention(proposals)


class CenterPeaks(nn.Module):
    """Objects as points (Zhou et al. 2019): the peaks of a heat map, and what stands beside them."""

    def __init__(self, classes: int = 4, count: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2))
        self.heat, self.size, self.count = nn.Conv2d(32, classes, 1), nn.Conv2d(32, 2, 1), count

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.features(x)
        heat = self.heat(x).sigmoid()
        peaks = (heat * (F.max_pool2d(heat, 3, 1, 1) == heat)).flatten(1)
        scores, places = peaks.topk(self.count, 1)
        cells = x.shape[2] * x.shape[3]
        sizes = self.size(x).flatten(2).gather(2, (places % cells).unsqueeze(1).expand(-1, 2, -1))
        return scores, places, sizes


class CascadeNet(nn.Module):
    """The first net of MTCNN (Zhang et al. 2016): PReLU, pooling that rounds up, softmax of two classes."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        first = (nn.Conv2d(3, 10, 3), nn.PReLU(10), pool)
        self.features = nn.Sequential(*first, nn.Conv2d(10, 16, 3), nn.PReLU(16), nn.Conv2d(16, 32, 3), nn.PReLU(32))
        self.face, self.box = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(x)
        return self.box(x), self.face(x).softmax(1)


class AtrousPyramid(nn.Module):
    """DeepLabV3+ (Chen et al. 2018): dilated convolutions side by side, and the whole picture's mean."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.low = nn.Sequential(conv(3, 16, stride=2), conv(16, 16, stride=2))
        self.high = nn.Sequential(separable(16, width, 2), separable(width, width))
        self.branches = Concat(conv(width, 16, 1), *(conv(width, 16, dilation=rate) for rate in (2, 4, 6)))
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 16, 1), nn.ReLU())
        self.merge, self.last = conv(5 * 16 + 16, 32), nn.Conv2d(32, 21, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(x)
        high = self.high(low)
        resize = partial(F.interpolate, mode="bilinear", align_corners=False)
        context = torch.cat([self.branches(high), resize(self.mean(high), size=high.shape[2:])], 1)
        merged = self.merge(torch.cat([resize(context, size=low.shape[2:]), low], 1))
        return resize(self.last(merged), size=x.shape[2:]).argmax(1)


class Hourglass(nn.Module):
    """Newell et al. 2016: down and up again, with a residual block on each level."""

    def __init__(self, depth: int = 3, width: int = 16) -> None:
        super().__init__()
        self.skip = residual(conv(width, width))
        inner = Hourglass(depth - 1, width) if depth else residual(conv(width, width))
        resize = nn.Upsample(scale_factor=2, mode="nearest")
        self.body = nn.Sequential(nn.MaxPool2d(2), residual(conv(width, width)), inner, resize)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.body(x)


class SoftArgmax(nn.Module):
    """Key points as the expected place of a heat map (Sun et al. 2018)."""

    def __init__(self, points: int = 17) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(width, 32, 4, 2, 1, bias=False) for width in (32, 32)]
        down = (conv(3, 16, stride=2), conv(16, 32, stride=2), conv(32, 32, stride=2))
        self.layers = nn.Sequential(
            *down, up[0], nn.BatchNorm2d(32), nn.ReLU(), up[1], nn.ReLU(), nn.Conv2d(32, points, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heat = self.layers(x)
        heat = heat.flatten(2).softmax(-1).view_as(heat)
        rows = (heat.sum(3) * torch.linspace(0, 1, heat.shape[2])).sum(2)
        columns = (heat.sum(2) * torch.linspace(0, 1, heat.shape[3])).sum(2)
        return torch.stack((columns, rows), -1)


class SpatialTransformer(nn.Module):
    """Jaderberg et al. 2015: the network says from where it wants to see the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(conv(3, 8, stride=4), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6))
        self.what = nn.Sequential(conv(3, 16, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(self.where(x).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.what(F.grid_sample(x, grid, align_corners=False))


class Flow(nn.Module):
    """After FlowNet: a correlation of two pictures' features, from which one is warped to the other."""

    def __init__(self, reach: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 16, stride=2), conv(16, 16))
        self.flow, self.reach = nn.Conv2d((2 * reach + 1) ** 2, 2, 3, padding=1), reach

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.features(first), self.features(second)
        batch, channels, height, width = a.shape
        size = 2 * self.reach + 1
        near = F.unfold(b, size, padding=self.reach).view(batch, channels, size * size, height, width)
        flow = self.flow((a.unsqueeze(2) * near).mean(1))
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack((columns, rows), -1) + flow.permute(0, 2, 3, 1)
        return flow, F.grid_sample(b, grid, padding_mode="border", align_corners=True)


def dcgan() -> nn.Module:
    """Radford et al. 2016: a picture from a code, by transposed convolutions."""
    layers = [Apply(lambda x: x[..., None, None]), nn.ConvTranspose2d(64, 64, 4, 1, 0, bias=False), nn.BatchNorm2d(64)]
    for channels, features in ((64, 32), (32, 16)):
        up = nn.ConvTranspose2d(channels, features, 4, 2, 1, bias=False)
        layers += [nn.ReLU(), up, nn.BatchNorm2d(features)]
    return nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())


class Autoencoder(nn.Module):
    """A variational one that returns mean, logarithm of the variance, and the picture of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2), nn.Flatten())
        self.mean, self.spread = nn.Linear(32 * 64, 16), nn.Linear(32 * 64, 16)
        up = (nn.ConvTranspose2d(32, 16, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 3, 2, 1, 1), nn.Sigmoid())
        self.decoder = nn.Sequential(nn.Linear(16, 32 * 64), nn.Unflatten(1, (32, 8, 8)), *up)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        code = self.encoder(x)
        mean = self.mean(code)
        return self.decoder(mean), mean, self.spread(code)


class Denoiser(nn.Module):
    """The net of a diffusion model: group normalisation, attention, and the step as sines."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.time = nn.Conv2d(3, width, 3, padding=1), nn.Linear(32, width)
        self.norm, self.attention = nn.GroupNorm(8, width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.down, self.up = nn.Conv2d(width, width, 3, 2, 1), nn.ConvTranspose2d(width, width, 4, 2, 1)
        self.last = nn.Sequential(nn.GroupNorm(8, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, 3, 3, padding=1))

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        rates = torch.exp(torch.arange(16) * -0.5)
        angles = step[:, None].float() * rates
        time = self.time(torch.cat((angles.sin(), angles.cos()), -1))
        first = self.first(x) + time[..., None, None]
        x = self.down(F.silu(self.norm(first)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        x = self.up(tokens.transpose(1, 2).view_as(x))
        return self.last(torch.cat((first, x), 1))


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021: linear layers over places, then over channels."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

        def mlp(size):
            return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

        self.places, self.channels = mlp(places), mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


def mlp_mixer(width: int = 32) -> nn.Module:
    """A picture as 64 patches."""
    tokens = (nn.Conv2d(3, width, 8, 8), nn.Flatten(2), Apply(lambda x: x.transpose(1, 2)))
    blocks = (MixerBlock(64, width) for _ in range(3))
    return nn.Sequential(*tokens, *blocks, nn.LayerNorm(width), Apply(lambda x: x.mean(1)), nn.Linear(width, 10))


def conv_mixer(width: int = 32) -> nn.Module:
    """Trockman and Kolter 2022: large depthwise kernels on patches."""

    def spatial():
        return residual(conv(width, width, 9, groups=width, activation=nn.GELU))

    blocks = [layer for _ in range(3) for layer in (spatial(), conv(width, width, 1, activation=nn.GELU))]
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


class Crnn(nn.Module):
    """Shi et al. 2017: a line of text as a sequence of columns, read both ways."""

    def __init__(self, letters: int = 37, width: int = 32) -> None:
        super().__init__()
        pools = ((2, 2), (2, 2), (2, 1))
        widths = (1, 16, 32, width)
        layers = zip(widths, widths[1:], pools, strict=False)
        self.features = nn.Sequential(*(nn.Sequential(conv(a, b), nn.MaxPool2d(pool, pool)) for a, b, pool in layers))
        self.recurrent = First(nn.LSTM(4 * width, 32, 2, bidirectional=True))
        self.letters = nn.Linear(64, letters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.letters(self.recurrent(x.flatten(1, 2).permute(2, 0, 1))).log_softmax(-1)


FAMILIES: dict[str, dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]]] = {
    "Segmentation": {
        "unet": (UNet, PICTURE),
        "unet_bilinear": (partial(UNet, "bilinear"), PICTURE),
        "unet_nearest_deep": (partial(UNet, "nearest", 4, 8), PICTURE),
        "deeplabv3plus": (AtrousPyramid, PICTURE),
    },
    "Pose, faces, detection": {
        "fpn": (FeaturePyramid, PICTURE),
        "efficientdet_bifpn": (BiFpn, PICTURE),
        "ssd": (Ssd, PICTURE),
        "yolov3": (YoloV3, PICTURE),
        "yolov8": (YoloV8, PICTURE),
        "yolox_stem": (yolox_stem, PICTURE),
        "thundernet_context": (ContextModule, PICTURE),
        "center_peaks": (CenterPeaks, PICTURE),
        "mtcnn_pnet": (CascadeNet, (Numbers((1, 3, 45, 60)),)),
        "hourglass": (lambda: nn.Sequential(conv(3, 16, 7, 2), Hourglass(), nn.Conv2d(16, 17, 1)), PICTURE),
        "soft_argmax_pose": (SoftArgmax, PICTURE),
    },
    "Super-resolution": {
        "espcn_x3": (espcn, LOW),
        "espcn_x2": (partial(espcn, 2), LOW),
        "srcnn": (srcnn, LOW),
        "fsrcnn": (fsrcnn, LOW),
        "falsr": (Falsr, LOW),
        "edsr": (edsr, LOW),
        "rcan": (rcan, LOW),
    },
    "Picture to picture": {
        "style_transfer": (style_transfer, PICTURE),
        "adain": (AdaIN, PICTURE * 2),
        "dcgan": (dcgan, CODE),
        "variational_autoencoder": (Autoencoder, LOW),
        "diffusion_step": (Denoiser, (Numbers((1, 3, 16, 16)), Integers((1,), 1000))),
        "spatial_transformer": (SpatialTransformer, PICTURE),
        "optical_flow": (Flow, LOW * 2),
    },
    "Vision transformers": {"mlp_mixer": (mlp_mixer, PICTURE), "conv_mixer": (conv_mixer, PICTURE)},
    "Text in pictures": {"crnn": (Crnn, (Numbers((1, 1, 32, 100)),))},
}


def entries() -> Iterator[Entry]:
    """All of this file."""
    for family, table in FAMILIES.items():
        for name, (make, inputs) in table.items():
            yield Entry(name, family, make, inputs)
