"""Networks for sound, sensors, points, video, tables and graphs: small definitions of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .entry import Entry, Input, Integers, Numbers
from .layers import Apply, Concat, First, conv, residual, separable

SPECTROGRAM = (Numbers((1, 1, 40, 98)),)
SERIES = (Numbers((1, 6, 128)),)
STEPS = (Numbers((1, 64, 8)),)
CLIP = (Numbers((1, 3, 8, 32, 32)),)
CLASSES = 12


def ds_cnn() -> nn.Module:
    """Zhang et al. 2017, "Hello Edge": depthwise separable convolutions on a spectrogram."""
    return nn.Sequential(conv(1, 32, stride=2), *(separable(32, 32) for _ in range(3)), *pooled(32))


def pooled(channels: int) -> tuple[nn.Module, ...]:
    """Classes from the mean of a map."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def pooled_series(channels: int) -> tuple[nn.Module, ...]:
    """Classes from the mean over time."""
    return nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def res8() -> nn.Module:
    """Tang and Lin 2018: residual blocks after average pooling."""
    blocks = (residual(conv(24, 24), conv(24, 24)) for _ in range(3))
    return nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.AvgPool2d((4, 3)), *blocks, *pooled(24))


def tc_resnet() -> nn.Module:
    """Choi et al. 2019: the bands of a spectrogram as channels of a series."""
    first = (Apply(lambda x: x.squeeze(1)), nn.Conv1d(40, 16, 3, padding=1, bias=False))
    series = partial(conv, rank=1)
    blocks = (nn.Sequential(series(16, 16, 9, 2), residual(series(16, 16, 9), series(16, 16, 9))) for _ in range(2))
    return nn.Sequential(*first, *blocks, *pooled_series(16))


class RecurrentClassifier(nn.Module):
    """The last output of a recurrent layer, as keyword spotters and activity recognition use it."""

    def __init__(self, kind: Callable[..., nn.RNNBase], channels: int, width: int = 32, **options: int) -> None:
        super().__init__()
        self.layer = kind(channels, width, batch_first=True, **options)
        self.last = nn.Linear(width * (2 if self.layer.bidirectional else 1), CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(x)[0][:, -1])


class BroadcastResidual(nn.Module):
    """Kim et al. 2021: convolutions over bands, whose mean goes through one over time and is added to all bands."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.bands = nn.Sequential(nn.Conv2d(width, width, (3, 1), padding=(1, 0), groups=width), nn.BatchNorm2d(width))
        temporal = nn.Conv2d(width, width, (1, 3), padding=(0, 1), groups=width)
        self.times = nn.Sequential(temporal, nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bands = self.bands(x)
        return F.relu(x + bands + self.times(bands.mean(2, keepdim=True)))


class DeepSense(nn.Module):
    """Yao et al. 2017: convolutions of each sensor, of all together, and a recurrent layer over intervals."""

    def __init__(self, sensors: int = 2, width: int = 16) -> None:
        super().__init__()

        def layers(channels):
            return (nn.Conv2d(channels, width, (1, 3), padding=(0, 1)), nn.BatchNorm2d(width), nn.ReLU())

        self.single = nn.ModuleList(nn.Sequential(*layers(3), *layers(width)) for _ in range(sensors))
        merge = nn.Conv3d(width, width, (sensors, 1, 3), padding=(0, 0, 1))
        self.merge = nn.Sequential(merge, nn.BatchNorm3d(width), nn.ReLU())
        self.recurrent = First(nn.GRU(width * 16, 32, 2, batch_first=True))
        self.last = nn.Linear(32, CLASSES)

    def forward(self, *sensors: torch.Tensor) -> torch.Tensor:
        maps = torch.stack([net(x) for net, x in zip(self.single, sensors, strict=True)], 2)
        merged = self.merge(maps).squeeze(2)  # [batch, channel, interval, frequency]
        return self.last(self.recurrent(merged.transpose(1, 2).flatten(2)).mean(1))


class Causal(nn.Conv1d):
    """A dilated convolution of what came before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


def temporal_convolution() -> nn.Module:
    """Bai et al. 2018: causal dilated convolutions with weight normalisation."""
    norm = nn.utils.parametrizations.weight_norm

    def layer(rate):
        return (norm(Causal(16, 16, 3, dilation=rate)), nn.ReLU(), norm(Causal(16, 16, 3, dilation=rate)))

    return nn.Sequential(nn.Conv1d(6, 16, 1), *(residual(*layer(2**level)) for level in range(4)), nn.Conv1d(16, 6, 1))


class WaveNet(nn.Module):
    """van den Oord et al. 2016: gated dilated convolutions with skips."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        self.first = Causal(1, width, 2)
        self.gated = nn.ModuleList(Causal(width, 2 * width, 2, dilation=2**level) for level in range(depth))
        self.skip = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(depth))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.first(x), None
        for gated, skip in zip(self.gated, self.skip, strict=True):
            values, gates = gated(x).chunk(2, 1)
            change, kept = skip(values.tanh() * gates.sigmoid()).chunk(2, 1)
            x, total = x + change, kept if total is None else total + kept
        return self.last(total)


class InceptionBlock(nn.Module):
    """Ismail Fawaz et al. 2020, for series."""

    def __init__(self, channels: int, width: int = 8) -> None:
        super().__init__()
        self.narrow = nn.Conv1d(channels, width, 1, bias=False)
        self.long = Concat(*(nn.Conv1d(width, width, kernel, padding="same", bias=False) for kernel in (39, 19, 9)))
        self.pool = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(channels, width, 1, bias=False))
        self.last = nn.Sequential(nn.BatchNorm1d(4 * width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat((self.long(self.narrow(x)), self.pool(x)), 1))


class LstmFcn(nn.Module):
    """Karim et al. 2018: a recurrent and a convolutional view of a series side by side."""

    def __init__(self) -> None:
        super().__init__()
        series = partial(conv, rank=1)
        self.convolutions = nn.Sequential(
            series(6, 32, 7), series(32, 64, 5), series(64, 32, 3), nn.AdaptiveAvgPool1d(1)
        )
        self.recurrent = nn.LSTM(128, 16, batch_first=True)
        self.last = nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat((self.convolutions(x).squeeze(-1), self.recurrent(x)[1][0][-1]), 1))


class NBeats(nn.Module):
    """Oreshkin et al. 2020: each block subtracts what it explains and adds to the forecast."""

    def __init__(self, past: int = 64, future: int = 16, width: int = 32) -> None:
        super().__init__()

        def layers():
            return (nn.Linear(past, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

        self.blocks = nn.ModuleList(nn.Sequential(*layers(), nn.Linear(width, past + future)) for _ in range(3))
        self.past, self.future = past, future

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        forecast = x.new_zeros(x.shape[0], self.future)
        for block in self.blocks:
            explained, more = block(x).split((self.past, self.future), 1)
            x, forecast = x - explained, forecast + more
        return forecast


class DLinear(nn.Module):
    """Zeng et al. 2023: trend by a moving average, and a linear layer for each part."""

    def __init__(self, past: int = 64, future: int = 16) -> None:
        super().__init__()
        self.trend, self.season = nn.Linear(past, future), nn.Linear(past, future)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        trend = F.avg_pool1d(F.pad(x, (12, 12), mode="replicate"), 25, 1)
        return (self.season(x - trend) + self.trend(trend)).transpose(1, 2)


class Separator(nn.Module):
    """Conv-TasNet (Luo and Mesgarani 2019): masks between a convolution and its transposed counterpart."""

    def __init__(self, width: int = 32, sources: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, width, 16, 8, bias=False)

        def block(rate):
            return residual(
                nn.Conv1d(width, width, 1),
                nn.PReLU(),
                nn.GroupNorm(1, width),
                nn.Conv1d(width, width, 3, 1, rate, rate, width),
            )

        mask = (nn.PReLU(), nn.Conv1d(width, sources * width, 1), nn.Sigmoid())
        self.mask = nn.Sequential(nn.GroupNorm(1, width), *(block(2**level) for level in range(3)), *mask)
        self.decoder, self.sources = nn.ConvTranspose1d(width, 1, 16, 8, bias=False), sources

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        code = self.encoder(x)
        masks = self.mask(code).view(x.shape[0] * self.sources, -1, code.shape[-1])
        return self.decoder(masks * code.repeat_interleave(self.sources, 0)).view(x.shape[0], self.sources, -1)


class Pitch(nn.Module):
    """After CREPE (Kim et al. 2018): pitch from 1024 samples."""

    def __init__(self) -> None:
        super().__init__()
        layers = ((1, 32, 512, 4), (32, 8, 64, 1), (8, 8, 64, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ZeroPad2d((0, 0, (kernel - 1) // 2, kernel // 2))
                    if stride == 1
                    else nn.ZeroPad2d((0, 0, 254, 254)),
                    nn.Conv2d(a, b, (kernel, 1), (stride, 1)),
                    nn.ReLU(),
                    nn.BatchNorm2d(b),
                    nn.MaxPool2d((2, 1), (2, 1)),
                )
                for a, b, kernel, stride in layers
            )
        )
        self.last = nn.LazyLinear(360)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True).clamp_min(1e-10)
        x = self.layers(x[:, None, :, None])
        return self.last(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def pitch() -> nn.Module:
    """With its last layer's size known."""
    module = Pitch().eval()
    module(torch.ones(1, 1024))
    return module


class Speaker(nn.Module):
    """A voice as a unit vector (Wan et al. 2018): the last state of a recurrent net."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.last = nn.LSTM(40, 64, 3, batch_first=True), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.recurrent(x)
        voice = self.last(hidden[-1]).relu()
        return voice / torch.norm(voice, dim=1, keepdim=True)


class Spectrum(nn.Module):
    """A spectrogram in the network: windows, Fourier transform, logarithm of the power."""

    window: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(256))
        self.bands = nn.Linear(129, 40, bias=False)
        nn.init.uniform_(self.bands.weight, 0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        transformed = torch.stft(x, 256, 128, window=self.window, return_complex=True)
        power = transformed.real.square() + transformed.imag.square()
        return torch.log(self.bands(power.transpose(1, 2)).clamp_min(1e-5))


class VoiceDetector(nn.Module):
    """After Silero's: recurrent, with the state given and returned."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        series = partial(conv, rank=1)
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 16, 8), series(16, width, stride=2), series(width, width, stride=2)
        )
        self.cell, self.last = nn.LSTMCell(width, width), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden, cell = self.cell(self.features(x[:, None]).mean(-1), (hidden, cell))
        return self.last(hidden).sigmoid(), hidden, cell


class TransformNet(nn.Module):
    """A matrix by which PointNet turns points or features."""

    def __init__(self, size: int) -> None:
        super().__init__()
        series = partial(conv, kernel=1, rank=1)
        self.layers, self.last, self.size = (
            nn.Sequential(series(size, 32), series(32, 64)),
            nn.Linear(64, size**2),
            size,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix = self.last(self.layers(x).max(2)[0]).view(-1, self.size, self.size) + torch.eye(self.size)
        return torch.bmm(x.transpose(1, 2), matrix).transpose(1, 2)


class PointNet(nn.Module):
    """Qi et al. 2017: the maximum over points of what is computed of each."""

    def __init__(self) -> None:
        super().__init__()
        series = partial(conv, kernel=1, rank=1)
        self.layers = nn.Sequential(TransformNet(3), series(3, 32), TransformNet(32), series(32, 64), series(64, 128))
        self.last = nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.max(self.layers(x), 2)[0]).log_softmax(-1)


class EdgeConvolution(nn.Module):
    """Wang et al. 2019 (DGCNN): the nearest neighbours of each point are found anew in each layer."""

    def __init__(self, channels: int, features: int, neighbours: int = 8) -> None:
        super().__init__()
        self.layer, self.neighbours = conv(2 * channels, features, 1), neighbours

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, points = x.shape
        near = torch.cdist(x.transpose(1, 2), x.transpose(1, 2)).topk(self.neighbours, largest=False)[1]
        index = near.view(batch, 1, -1).expand(-1, channels, -1)
        found = x.gather(2, index).view(batch, channels, points, self.neighbours)
        centre = x.unsqueeze(-1).expand_as(found)
        return self.layer(torch.cat((found - centre, centre), 1)).max(-1)[0]


def video_3d(width: int = 8) -> nn.Module:
    """Tran et al. 2015 (C3D): plain 3-d convolutions."""
    layers = [conv(3, width, rank=3), nn.MaxPool3d((1, 2, 2)), conv(width, 2 * width, rank=3), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, conv(2 * width, 2 * width, rank=3), *pooled_volume(2 * width))


def pooled_volume(channels: int) -> tuple[nn.Module, ...]:
    """Classes from the mean of a volume."""
    return nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def video_residual(width: int = 8) -> nn.Module:
    """A 3-d residual network (Hara et al. 2018)."""
    volume = partial(conv, rank=3)
    blocks = (residual(volume(width, width), volume(width, width)) for _ in range(2))
    return nn.Sequential(nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3)), *blocks, *pooled_volume(width))


def video_split(width: int = 8) -> nn.Module:
    """Tran et al. 2018 (R(2+1)D): a convolution in space, then one in time."""

    def layer(a, b):
        return (
            nn.Conv3d(a, b, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.BatchNorm3d(b),
            nn.ReLU(),
            nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(b),
            nn.ReLU(),
        )

    return nn.Sequential(*layer(3, width), *layer(width, 2 * width), *pooled_volume(2 * width))


def volume_unet(width: int = 8) -> nn.Module:
    """Segmentation of a volume, with a transposed convolution (after V-Net, Milletari et al. 2016)."""
    inner = (conv(width, 2 * width, stride=2, rank=3), conv(2 * width, 2 * width, rank=3))
    up = nn.ConvTranspose3d(2 * width, width, 2, 2)
    return nn.Sequential(conv(1, width, rank=3), residual(*inner, up), nn.Conv3d(width, 2, 1), nn.Softmax(1))


class TemporalShift(nn.Module):
    """Lin et al. 2019: some channels of each frame come from the frame before or after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 16, stride=2), conv(16, 32, stride=2)
        self.last = nn.Sequential(*pooled(32))

    @staticmethod
    def shift(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[:, :-1, :4] = x[:, 1:, :4]
        out[:, 1:, 4:8] = x[:, :-1, 4:8]
        out[:, :, 8:] = x[:, :, 8:]
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, frames = x.shape[:3]
        maps = self.first(x.transpose(1, 2).flatten(0, 1))
        maps = self.shift(maps.view(batch, frames, *maps.shape[1:])).flatten(0, 1)
        return self.last(self.second(maps)).view(batch, frames, -1).mean(1)


class ConvLstm(nn.Module):
    """Shi et al. 2015: a recurrent cell of convolutions, over the frames of a clip."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.gates, self.width = nn.Conv2d(3 + width, 4 * width, 3, padding=1), width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = cell = x.new_zeros(x.shape[0], self.width, *x.shape[3:])
        for frame in x.unbind(2):
            i, f, o, g = self.gates(torch.cat((frame, hidden), 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return hidden


class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): bags of embeddings and dense features, multiplied pair by pair."""

    def __init__(self, tables: int = 4, rows: int = 100, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.dense = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.last = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())

    def forward(self, dense: torch.Tensor, *bags: torch.Tensor) -> torch.Tensor:
        x = self.dense(dense)
        vectors = torch.stack([x, *(table(bag) for table, bag in zip(self.tables, bags, strict=True))], 1)
        rows, columns = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, rows, columns]
        return self.last(torch.cat((x, products), 1))


class FactorizationMachine(nn.Module):
    """DeepFM (Guo et al. 2017): products of pairs through the square of a sum, beside a deep part."""

    def __init__(self, rows: int = 100, fields: int = 6, width: int = 8) -> None:
        super().__init__()
        self.vectors, self.weights = nn.Embedding(rows, width), nn.Embedding(rows, 1)
        self.deep = nn.Sequential(nn.Linear(fields * width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vectors = self.vectors(x)
        pairs = 0.5 * (vectors.sum(1).pow(2) - vectors.pow(2).sum(1)).sum(1, keepdim=True)
        return (self.weights(x).sum(1) + pairs + self.deep(vectors.flatten(1))).sigmoid()


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017, on a dense adjacency matrix."""

    def __init__(self, channels: int = 8, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(channels, width), nn.Linear(width, CLASSES)))

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        adjacency = (weights > 0.5).to(x.dtype) + torch.eye(x.shape[1])
        scale = adjacency.sum(-1).rsqrt()
        adjacency = scale.unsqueeze(-1) * adjacency * scale.unsqueeze(-2)
        return adjacency @ self.layers[1](F.relu(adjacency @ self.layers[0](x)))


class GraphAttention(nn.Module):
    """Velickovic et al. 2018, on a dense adjacency matrix."""

    def __init__(self, channels: int = 8, width: int = 16) -> None:
        super().__init__()
        self.layer, self.source, self.target = nn.Linear(channels, width), nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        scores = F.leaky_relu(self.source(x) + self.target(x).transpose(1, 2), 0.2)
        return scores.masked_fill(weights < 0, -1e9).softmax(-1) @ x


class MessagePassing(nn.Module):
    """Messages along a list of edges, added where they arrive."""

    def __init__(self, channels: int = 8, width: int = 16) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * channels, width), nn.GRUCell(width, channels)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        (nodes, source, target) = (x[0], edges[0, 0], edges[0, 1])
        messages = self.message(torch.cat((nodes[source], nodes[target]), -1)).relu()
        arrived = messages.new_zeros(nodes.shape[0], messages.shape[1]).index_add(0, target, messages)
        return self.update(arrived, nodes)


class SequenceToSequence(nn.Module):
    """An encoder and a decoder with attention between them (Bahdanau et al. 2015)."""

    def __init__(self, width: int = 32, words: int = 100) -> None:
        super().__init__()
        self.words, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.encoder = nn.GRU(width, width // 2, bidirectional=True, batch_first=True)
        self.decoder, self.last = nn.GRU(width, width, batch_first=True), nn.Linear(2 * width, words)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, _ = self.encoder(self.words(source))
        states, _ = self.decoder(self.target(target), memory[:, -1].unsqueeze(0).contiguous())
        context = (states @ memory.transpose(1, 2)).softmax(-1) @ memory
        return self.last(torch.cat((states, context), -1)).log_softmax(-1)


class TextConvolution(nn.Module):
    """Kim 2014: the maxima over a sentence of convolutions of several widths."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(100, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, 16, kernel) for kernel in (3, 4, 5))
        self.last = nn.Linear(48, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.words(x).transpose(1, 2)
        return self.last(torch.cat([F.relu(layer(x)).amax(2) for layer in self.layers], 1))


NODES, EDGES, WORDS = 16, 40, (Integers((1, 24), 100),)
GRAPH = (Numbers((1, NODES, 8)), Numbers((1, NODES, NODES)))
FAMILIES: dict[str, dict[str, tuple[Callable[[], nn.Module], tuple[Input, ...]]]] = {
    "Keyword spotting": {
        "ds_cnn": (ds_cnn, SPECTROGRAM),
        "res8": (res8, SPECTROGRAM),
        "tc_resnet": (tc_resnet, SPECTROGRAM),
        "bc_resnet": (
            lambda: nn.Sequential(conv(1, 16, 5, 2), *(BroadcastResidual() for _ in range(3)), *pooled(16)),
            SPECTROGRAM,
        ),
        "keyword_gru": (partial(RecurrentClassifier, nn.GRU, 40), (Numbers((1, 98, 40)),)),
        "keyword_lstm": (partial(RecurrentClassifier, nn.LSTM, 40), (Numbers((1, 98, 40)),)),
    },
    "Speech": {
        "wavenet": (WaveNet, (Numbers((1, 1, 256)),)),
        "conv_tasnet": (Separator, (Numbers((1, 1, 800)),)),
        "crepe": (pitch, (Numbers((1, 1024)),)),
        "speaker_embedding": (Speaker, (Numbers((1, 80, 40)),)),
        "spectrogram": (Spectrum, (Numbers((1, 2000)),)),
        "voice_detector": (VoiceDetector, (Numbers((1, 512)), Numbers((1, 32)), Numbers((1, 32)))),
    },
    "Time series": {
        "deepsense": (DeepSense, (Numbers((1, 3, 8, 16)), Numbers((1, 3, 8, 16)))),
        "temporal_convolution": (temporal_convolution, SERIES),
        "inception_time": (lambda: nn.Sequential(InceptionBlock(6), InceptionBlock(32), *pooled_series(32)), SERIES),
        "lstm_fcn": (LstmFcn, SERIES),
        "activity_bilstm": (partial(RecurrentClassifier, nn.LSTM, 8, num_layers=2, bidirectional=True), STEPS),
        "elman": (partial(RecurrentClassifier, nn.RNN, 8), STEPS),
        "n_beats": (NBeats, (Numbers((1, 64)),)),
        "dlinear": (DLinear, STEPS),
        "transformer_encoder": (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True), 2),
            STEPS,
        ),
        "transformer": (lambda: nn.Transformer(8, 2, 1, 1, 32, batch_first=True), STEPS * 2),
    },
    "Points": {
        "pointnet": (PointNet, (Numbers((1, 3, 128)),)),
        "dgcnn": (lambda: nn.Sequential(EdgeConvolution(3, 16), EdgeConvolution(16, 32)), (Numbers((1, 3, 64)),)),
    },
    "Video and volumes": {
        "c3d": (video_3d, CLIP),
        "resnet_3d": (video_residual, CLIP),
        "r2plus1d": (video_split, CLIP),
        "temporal_shift": (TemporalShift, CLIP),
        "conv_lstm": (ConvLstm, CLIP),
        "unet_3d": (volume_unet, (Numbers((1, 1, 16, 16, 16)),)),
    },
    "Tables and graphs": {
        "dlrm": (Recommender, (Numbers((1, 8)), *[Integers((1, 5), 100)] * 4)),
        "deepfm": (FactorizationMachine, (Integers((1, 6), 100),)),
        "graph_convolution": (GraphConvolution, GRAPH),
        "graph_attention": (GraphAttention, GRAPH),
        "message_passing": (MessagePassing, (Numbers((1, NODES, 8)), Integers((1, 2, EDGES), NODES))),
    },
    "Language": {
        "sequence_to_sequence": (SequenceToSequence, WORDS * 2),
        "text_convolution": (TextConvolution, WORDS),
    },
}


def entries() -> Iterator[Entry]:
    """All of this file."""
    for family, table in FAMILIES.items():
        for name, (make, inputs) in table.items():
            yield Entry(name, family, make, inputs)
