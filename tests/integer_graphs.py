"""Graphs of 8-bit integers: a builder of quantized layers, and random graphs made of them.

Scales are such that neighbouring numbers of f32 matter: a product that is not rounded where the reference rounds it
shows as another integer.
"""

from __future__ import annotations

import torch

from tersor.ir import DType, Graph, TensorType, Value, ops

from .random_graphs import GraphBuilder


class IntegerBuilder(GraphBuilder):
    """Appends quantized layers; every integer value has a scale and a zero point, kept in `meaning`."""

    def __init__(self, inputs: dict[str, TensorType], seed: int = 0) -> None:
        super().__init__(inputs, seed)
        self.meaning: dict[Value, tuple[float, int]] = {}

    def below(self, limit: int) -> int:
        return int(torch.randint(0, limit, (), generator=self.generator))

    def bytes(self, *shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=self.generator).to(torch.int8)

    def small(self, *shape: int) -> torch.Tensor:
        """Numbers that fit into both 8-bit types, in u8 or i8 as the graph's first input."""
        numbers = torch.randint(0, 128, shape, generator=self.generator)
        return numbers.to(self.graph.inputs[0].type.dtype.torch)

    def quantize(
        self, x: Value, dtype: DType = DType.U8, *, scale: float = 0.037, zero_point: int | None = None
    ) -> Value:
        low, high = (0, 255) if dtype is DType.U8 else (-128, 127)
        zero_point = low + self.below(high - low) if zero_point is None else zero_point
        q = self.op(ops.QuantizeOp, x, scale=scale, zero_point=zero_point, dtype=dtype)
        self.meaning[q] = (scale, zero_point)
        return q

    def dequantize(self, q: Value) -> Value:
        scale, zero_point = self.meaning[q]
        return self.op(ops.DequantizeOp, q, self.number(scale), zero_point=zero_point)

    def conv(
        self, q: Value, channels: int, kernel: int = 3, *, groups: int = 1, stride: int = 1, bias: bool = True, **attrs
    ) -> Value:
        """An i32 convolution of a quantized value."""
        weight = self.constant(self.bytes(channels, q.shape[1] // groups, kernel, kernel))
        pad = kernel // 2
        window = {"stride": (stride, stride), "padding": (pad, pad, pad, pad), "groups": groups, **attrs}
        window["zero_point"] = self.meaning[q][1]
        return self.op(ops.Conv2dOp, q, weight, self.int_bias(channels) if bias else None, **window)

    def linear(self, q: Value, features: int, *, bias: bool = True) -> Value:
        """An i32 linear layer of a quantized value."""
        weight = self.constant(self.bytes(features, q.shape[-1]))
        zero_point = self.meaning[q][1]
        return self.op(ops.LinearOp, q, weight, self.int_bias(features) if bias else None, zero_point=zero_point)

    def int_bias(self, channels: int) -> Value:
        return self.constant(torch.randint(-5000, 5000, (channels,), generator=self.generator).to(torch.int32))

    def sums_to_float(self, sums: Value) -> Value:
        """The f32 numbers that i32 sums stand for, with a scale for each channel, of the order of 1."""
        channels = sums.shape[1] if sums.type.rank == 4 else sums.shape[-1]
        assert isinstance(sums.op, ops.Conv2dOp | ops.LinearOp)
        terms = sums.op.weight.type.size // sums.op.weight.shape[0]
        scales = (torch.rand(channels, generator=self.generator) + 0.5) / (5000 * terms**0.5)
        shape = (channels, 1, 1) if sums.type.rank == 4 else (channels,)
        return self.op(ops.DequantizeOp, sums, self.constant(scales.reshape(shape)))

    def layer(self, q: Value, channels: int, kernel: int = 3, dtype: DType = DType.U8, **options) -> Value:
        """Convolution, ReLU, quantized again."""
        return self.quantize(self.op(ops.ReluOp, self.sums_to_float(self.conv(q, channels, kernel, **options))), dtype)

    def residual(self, q: Value, dtype: DType = DType.U8) -> Value:
        """conv, dequantized, plus q, ReLU, quantized again."""
        body = self.sums_to_float(self.conv(q, q.shape[1]))
        return self.quantize(self.op(ops.ReluOp, self.op(ops.AddOp, body, self.dequantize(q))), dtype)


def small_resnet(seed: int = 0) -> Graph:
    """A quantized network from an f32 picture to f32 logits: stem, pooling, residual blocks, shortcut, head."""
    b = IntegerBuilder({"x": TensorType((1, 3, 22, 18))}, seed)
    x = b.quantize(b.graph.inputs[0], scale=0.02, zero_point=128)
    x = b.layer(x, 24, 7, stride=2)
    pooled = b.op(ops.MaxPool2dOp, x, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    b.meaning[pooled] = b.meaning[x]
    x = b.residual(pooled)
    inner = b.layer(x, 40, 3, DType.I8, stride=2)
    main = b.sums_to_float(b.conv(inner, 40))
    shortcut = b.sums_to_float(b.conv(x, 40, 1, stride=2))
    x = b.quantize(b.op(ops.ReluOp, b.op(ops.AddOp, main, shortcut)))
    x = b.layer(x, 40, 3, groups=40)
    scale, zero_point = b.meaning[x]
    mean = b.op(ops.MeanOp, x, axes=(2, 3))
    head = b.op(ops.QuantizeOp, mean, scale=1.0)
    b.meaning[head] = (scale, zero_point)
    return b.done(b.sums_to_float(b.linear(head, 10)))


def random_integer_graph(seed: int, size: int) -> Graph:
    """Random quantized layers between an f32 picture and dequantized outputs; the same for the same arguments."""
    b = IntegerBuilder({"x": TensorType((1, 5, 9, 7))}, seed)
    values = [b.quantize(b.graph.inputs[0])]
    for _ in range(size):
        q = values[-1] if b.below(2) else values[b.below(len(values))]
        made = _STEPS[b.below(len(_STEPS))](b, q, values)
        b.meaning.setdefault(made, b.meaning[q])
        values.append(made)
    unread = [q for q in values if not q.uses]
    return b.done(*(b.dequantize(q) if b.below(2) else q for q in unread[-3:]))


def _dtype(b: IntegerBuilder) -> DType:
    return (DType.U8, DType.I8)[b.below(2)]


def _convolution(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    depthwise = b.below(3) == 0
    channels = q.shape[1] if depthwise else (4, 20, 33)[b.below(3)]
    groups = q.shape[1] if depthwise else 1
    return b.layer(q, channels, (1, 3)[b.below(2)], _dtype(b), groups=groups, bias=bool(b.below(2)))


def _residual(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    return b.residual(q, _dtype(b))


def _joined(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    parts = [v for v in values if v.shape[2:] == q.shape[2:] and v.type.dtype is q.type.dtype]
    return b.op(ops.ConcatOp, q, parts[b.below(len(parts))], axis=1)


def _largest(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    return b.op(ops.MaxPool2dOp, q, kernel=(3, 3), stride=(1, 1), padding=(1, 1))


def _averaged(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    mean = b.op(ops.AvgPool2dOp, q, kernel=(3, 3), stride=(1, 1), padding=(1, 1), count_include_pad=False)
    return b.quantize(mean, _dtype(b), scale=0.7)


def _scaled(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    """A gate from the mean of each channel, as in squeeze and excitation."""
    number = b.dequantize(q)
    product = b.op(ops.MulOp, number, b.weight(q.shape[1], 1, 1))
    return b.quantize(b.op(ops.SubOp, product, b.op(ops.MulOp, number, number)), _dtype(b))


def _bounded(b: IntegerBuilder, q: Value, values: list[Value]) -> Value:
    return b.op(ops.ClampOp, q, min=float(b.below(40) - 50), max=float(60 + b.below(40)))


_STEPS = (_convolution, _convolution, _residual, _residual, _joined, _largest, _averaged, _scaled, _bounded)
