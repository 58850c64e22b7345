"""What the tests of quantization share: small networks, calibration data, and how near two graphs are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tersor.ir import Graph, TensorType, Value, ops
from tersor.ir.ops import (
    AddOp,
    AvgPool2dOp,
    ClampOp,
    ConcatOp,
    HardSwishOp,
    MaxPool2dOp,
    MeanOp,
    MulOp,
    PadOp,
    ReluOp,
    ReshapeOp,
    SigmoidOp,
)
from tersor.passes import PassManager, PassOutcome, as_pipeline
from tersor.tests.random_graphs import GraphBuilder

SHAPE = (1, 8, 10, 10)
# `quantize`, but for tables of activations and fusion.
STEPS = "quantize-annotate,quantize-calibrate,bias-correction,quantize-realize"
FEWEST_DECIBELS = 27.0  # of one layer or two in 8 bits; a wrong scale or zero point leaves less than 10


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or SHAPE)})


def data(graph: Graph, count: int = 4) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randn(v.shape, generator=generator) + 0.2 for v in graph.inputs) for _ in range(count)]


def quantized(graph: Graph, pipeline: str = STEPS, **options: Any) -> PassOutcome:
    return PassManager(as_pipeline(pipeline)).run(graph, calibration=data(graph), **options)


def decibels(exact: Graph, approximate: Graph) -> float:
    """Signal-to-noise ratio of all outputs together, on the calibration data."""
    signal = noise = 0.0
    for batch in data(exact):
        for x, y in zip(exact.evaluate(*batch), approximate.evaluate(*batch), strict=True):
            signal += x.double().square().sum().item()
            noise += (x.double() - y.double()).square().sum().item()
    return 10 * math.log10(signal / noise)


# Every kind of op --------------------------------------------------------------------------------------------------


def residual(b: GraphBuilder, x: Value) -> Value:
    first = b.op(ReluOp, b.conv(x, 8))
    return b.conv(b.op(ReluOp, b.op(AddOp, b.conv(first, 8), first)), 8)


def shortcut(b: GraphBuilder, x: Value) -> Value:
    x = b.op(ReluOp, b.conv(x, 8))
    main = b.conv(b.op(ReluOp, b.conv(x, 12, stride=2)), 12)
    return b.conv(b.op(ReluOp, b.op(AddOp, main, b.conv(x, 12, kernel=1, stride=2))), 8, kernel=1)


def joined(b: GraphBuilder, x: Value) -> Value:
    parts = [b.op(ReluOp, b.conv(x, channels)) for channels in (4, 6, 9)]
    return b.conv(b.op(ConcatOp, *parts, axis=1), 5)


def gated(b: GraphBuilder, x: Value) -> Value:
    """Squeeze and excitation."""
    x = b.op(HardSwishOp, b.conv(x, 8))
    squeezed = b.op(MeanOp, x, axes=(2, 3), keepdim=True)
    gate = b.op(SigmoidOp, b.conv(b.op(ReluOp, b.conv(squeezed, 4, kernel=1)), 8, kernel=1))
    return b.conv(b.op(MulOp, x, gate), 6, kernel=1)


def head(b: GraphBuilder, x: Value) -> Value:
    x = b.op(ReluOp, b.conv(x, 12))
    return b.linear(b.op(ReshapeOp, b.op(MeanOp, x, axes=(2, 3), keepdim=True), shape=(1, 12)), 10)


def padded(b: GraphBuilder, x: Value) -> Value:
    return b.conv(b.op(PadOp, b.conv(x, 6), before=(0, 0, 1, 0), after=(0, 0, 0, 2)), 4)


def moved(b: GraphBuilder, x: Value) -> Value:
    x = b.op(ops.ChannelShuffleOp, b.op(ReluOp, b.conv(x, 8)), groups=2, start=0, stop=8)
    return b.conv(b.op(ops.SliceOp, x, axis=1, start=2, stop=8), 4)


def averaged(b: GraphBuilder, x: Value) -> Value:
    mean = b.op(AvgPool2dOp, b.op(ReluOp, b.conv(x, 8)), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    return b.conv(mean, 4)


def normalized(b: GraphBuilder, x: Value) -> Value:
    """As in DenseNet, a normalisation of a concatenation, folded to a factor and a summand."""
    both = b.op(ConcatOp, b.conv(x, 8), b.conv(x, 8), axis=1)
    scaled = b.op(MulOp, both, b.weight(16, 1, 1, positive=True))
    return b.conv(b.op(ReluOp, b.op(AddOp, scaled, b.weight(16, 1, 1))), 4)


def decoded(b: GraphBuilder, x: Value) -> Value:
    """As in a U-Net: resized and joined with what was there before, and enlarged by a transposed convolution."""
    skip = b.op(ReluOp, b.conv(x, 8))
    small = b.op(ReluOp, b.conv(b.op(MaxPool2dOp, skip, kernel=(2, 2), stride=(2, 2)), 12))
    joined = b.op(ConcatOp, b.conv(b.op(ops.ResizeOp, small, size=(10, 10)), 8, kernel=1), skip, axis=1)
    weight, bias = b.weight(6, 16, 4, 4), b.weight(6)
    return b.op(ops.ConvTranspose2dOp, joined, weight, bias, stride=(2, 2), padding=(1, 1))


def picked(b: GraphBuilder, x: Value) -> Value:
    """Rows that are repeated, which is what resizing by nearest elements becomes."""
    rows = b.op(ReshapeOp, b.op(ops.PermuteOp, b.op(ReluOp, b.conv(x, 8)), dims=(2, 0, 1, 3)), shape=(10, 80))
    places = b.constant(torch.arange(20) // 2)
    picked = b.op(ReshapeOp, b.op(ops.EmbeddingOp, rows, places), shape=(20, 1, 8, 10))
    return b.conv(b.op(ops.PermuteOp, picked, dims=(1, 2, 0, 3)), 6)


NETWORKS: dict[str, Callable[[GraphBuilder, Value], Value]] = {
    "convolution": lambda b, x: b.conv(x, 8),
    "without bias": lambda b, x: b.conv(b.op(ReluOp, b.conv(x, 8, bias=False)), 8, bias=False),
    "depthwise": lambda b, x: b.conv(b.op(ClampOp, b.conv(x, 8), min=0.0, max=6.0), 8, groups=8),
    "grouped": lambda b, x: b.conv(x, 12, groups=4, stride=2),
    "signed": lambda b, x: b.conv(b.conv(x, 8), 8),
    "max pool": lambda b, x: b.conv(b.op(MaxPool2dOp, b.conv(x, 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1)), 8),
    "average pool": averaged,
    "residual": residual,
    "shortcut": shortcut,
    "concatenation": joined,
    "gate": gated,
    "head": head,
    "pad": padded,
    "moves": moved,
    "normalized": normalized,
    "decoder": decoded,
    "picked": picked,
}
