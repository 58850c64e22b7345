"""Small random graphs for property tests: convolutions, elementwise ops, residuals, joins, pooling, linear layers.

Every choice is drawn from one seeded generator, so that a seed stands for a graph; hypothesis draws the seed and the
number of ops.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from tersor.ir import DType, Graph, Op, TensorType, Value, ops
from tersor.ir.ops import (
    AdaptiveAvgPool2dOp,
    AddOp,
    AvgPool2dOp,
    BatchNormOp,
    ClampOp,
    ConcatOp,
    Conv2dOp,
    ExpandOp,
    FullOp,
    LayerNormOp,
    LinearOp,
    MatmulOp,
    MaximumOp,
    MaxPool2dOp,
    MeanOp,
    MulOp,
    PadOp,
    PermuteOp,
    ReshapeOp,
    SliceOp,
    SoftmaxOp,
    SubOp,
    WeightOp,
)

_UNARY = (
    ops.ReluOp,
    ops.SigmoidOp,
    ops.SiluOp,
    ops.HardSwishOp,
    ops.HardSigmoidOp,
    ops.TanhOp,
    ops.NegOp,
    ops.AbsOp,
    ops.GeluOp,
    ops.LeakyReluOp,
)


class GraphBuilder:
    """Appends ops to a graph; every method returns the value that was made."""

    def __init__(self, inputs: dict[str, TensorType], seed: int = 0, name: str = "test") -> None:
        self.graph = Graph(name, list(inputs.items()))
        self.generator = torch.Generator().manual_seed(seed)

    def op(self, kind: type[Op], *operands: Value | None, location: str = "", **attrs: object) -> Value:
        record = kind.attrs_type(**attrs) if attrs else None
        return self.graph.append(kind(operands, record, location=location)).result

    def weight(self, *shape: int, hint: str = "w", positive: bool = False) -> Value:
        numbers = torch.randn(shape, generator=self.generator) * 0.5
        return self.constant(numbers.abs() + 0.5 if positive else numbers, hint)

    def constant(self, numbers: torch.Tensor, hint: str = "w") -> Value:
        id = self.graph.weights.add(numbers, hint)
        return self.op(WeightOp, id=id, type=TensorType(tuple(numbers.shape), DType.from_torch(numbers.dtype)))

    def number(self, value: float, *shape: int) -> Value:
        return self.op(FullOp, value=value, shape=shape)

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int = 3,
        *,
        groups: int = 1,
        stride: int = 1,
        bias: bool = True,
        location: str = "conv",
    ) -> Value:
        weight = self.weight(channels, x.shape[1] // groups, kernel, kernel, hint=f"{location}.weight")
        pad = kernel // 2
        return self.op(
            Conv2dOp,
            x,
            weight,
            self.weight(channels, hint=f"{location}.bias") if bias else None,
            location=location,
            stride=(stride, stride),
            padding=(pad, pad, pad, pad),
            groups=groups,
        )

    def linear(self, x: Value, features: int, *, bias: bool = True, location: str = "fc") -> Value:
        weight = self.weight(features, x.shape[-1], hint=f"{location}.weight")
        added = self.weight(features, hint=f"{location}.bias") if bias else None
        return self.op(LinearOp, x, weight, added, location=location)

    def batch_norm(self, x: Value, location: str = "bn") -> Value:
        channels = x.shape[1]
        mean, gamma, beta = (self.weight(channels, hint=f"{location}.{part}") for part in ("mean", "gamma", "beta"))
        variance = self.weight(channels, hint=f"{location}.variance", positive=True)
        return self.op(BatchNormOp, x, mean, variance, gamma, beta, location=location)

    def done(self, *outputs: Value) -> Graph:
        self.graph.outputs = outputs
        return self.graph


class Grower(GraphBuilder):
    """Chooses what to append."""

    def __init__(self, inputs: dict[str, TensorType], seed: int) -> None:
        super().__init__(inputs, seed)
        self.values: list[Value] = list(self.graph.inputs)

    def below(self, limit: int) -> int:
        return int(torch.randint(0, limit, (), generator=self.generator))

    def pick(self, rank: int | None = None) -> Value:
        """A value made before; every other time the latest one, so that chains arise."""
        values = [value for value in self.values if rank is None or value.type.rank == rank]
        return values[-1] if self.below(2) else values[self.below(len(values))]

    def grow(self) -> None:
        steps = (
            self._convolution,
            self._convolution,
            self._transposed,
            self._volume,
            self._normalised,
            self._unary,
            self._unary,
            self._scalar,
            self._clamps,
            self._residual,
            self._residual,
            self._joined,
            self._pooled,
            self._padded,
            self._averaged,
            self._moved,
            self._linear,
            self._matmul,
            self._constants,
            self._row,
            self._recurrent,
        )
        made = steps[self.below(len(steps))]()
        if made.type.size <= 8192:
            self.values.append(made)

    def grown(self, size: int) -> Graph:
        """The graph after ``size`` steps; one to three values that nothing reads are its outputs."""
        for _ in range(size):
            self.grow()
        unread = [value for value in self.values if not value.uses]
        return self.done(*unread[-3:])

    def _convolution(self) -> Value:
        x = self.pick(4)
        depthwise = self.below(3) == 0
        channels = x.shape[1] if depthwise else (4, 6, 8)[self.below(3)]
        groups = x.shape[1] if depthwise else 1
        return self.conv(x, channels, (1, 3)[self.below(2)], groups=groups, bias=bool(self.below(2)))

    def _transposed(self) -> Value:
        x = self.pick(4)
        groups = (1, 2, x.shape[1])[self.below(3)] if x.shape[1] % 2 == 0 else 1
        outputs, kernel, stride = groups * (1, 4)[self.below(2)], (1, 2, 3, 4)[self.below(4)], (1, 2)[self.below(2)]
        weight = self.weight(outputs, x.shape[1] // groups, kernel, kernel, hint="up.weight")
        bias = self.weight(outputs, hint="up.bias") if self.below(2) else None
        window = {"stride": (stride, stride), "padding": (kernel // 3, kernel // 3), "groups": groups}
        made = self.op(ops.ConvTranspose2dOp, x, weight, bias, location="up", **window)
        return self.batch_norm(made) if self.below(3) == 0 else made

    def _volume(self) -> Value:
        """Rows of an image as frames of two rows each, and back."""
        x = self.pick(4)
        batch, channels, height, width = x.shape
        if height % 2:
            return x
        volume = self.op(ReshapeOp, x, shape=(batch, channels, height // 2, 2, width))
        if self.below(2):
            groups = channels if self.below(3) == 0 else 1
            weight = self.weight(channels, channels // groups, 3, 1, 3, hint="deep.weight")
            made = self.op(ops.Conv3dOp, volume, weight, location="deep", padding=(1, 0, 1) * 2, groups=groups)
        else:
            kind = (ops.MaxPool3dOp, ops.AvgPool3dOp)[self.below(2)]
            made = self.op(kind, volume, kernel=(3, 1, 1), stride=(1, 1, 1), padding=(1, 0, 0))
        return self.op(ReshapeOp, self.op(ops.ReluOp, made), shape=x.shape)

    def _normalised(self) -> Value:
        if self.below(2):
            return self.batch_norm(self._convolution())
        x = self.pick()
        if x.type.rank not in (2, 4):
            x = self.pick(4)
        return self.batch_norm(x)

    def _unary(self) -> Value:
        return self.op(_UNARY[self.below(len(_UNARY))], self.pick())

    def _scalar(self) -> Value:
        x, number = self.pick(), self.number((0.0, 1.0, 2.0, 0.5)[self.below(4)])
        kind = (AddOp, MulOp, SubOp, MaximumOp)[self.below(4)]
        return self.op(kind, number, x) if self.below(2) else self.op(kind, x, number)

    def _clamps(self) -> Value:
        low, high = -float(self.below(3)), float(self.below(4))
        return self.op(ClampOp, self.op(ClampOp, self.pick(), min=low), min=low / 2, max=high)

    def _residual(self) -> Value:
        x = self.pick()
        same = [value for value in self.values if value.shape == x.shape]
        other = same[self.below(len(same))]
        if x.type.rank == 4 and self.below(2):
            other = self.conv(other, x.shape[1])
        return self.op((AddOp, MulOp)[self.below(2)], x, other)

    def _joined(self) -> Value:
        x = self.pick(4)
        fours = [value for value in self.values if value.type.rank == 4]
        parts = [value for value in fours if (value.shape[0], *value.shape[2:]) == (x.shape[0], *x.shape[2:])]
        return self.op(ConcatOp, x, parts[self.below(len(parts))], axis=1)

    def _pooled(self) -> Value:
        x = self.pick(4)
        if min(x.shape[2:]) < 3:
            return self.op(AdaptiveAvgPool2dOp, x, size=(1, 1))
        kind = (MaxPool2dOp, AvgPool2dOp)[self.below(2)]
        return self.op(kind, x, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil=bool(self.below(2)))

    def _padded(self) -> Value:
        x = self.pick(4)
        if min(x.shape[2:]) > 16:
            return x
        value = (0.0, -math.inf)[self.below(2)]
        padded = self.op(PadOp, x, before=(0, 0, 1, 1), after=(0, 0, 1, 1), value=value)
        return self.op(MaxPool2dOp, padded, kernel=(3, 3), stride=(1, 1)) if value else self.conv(padded, 4)

    def _averaged(self) -> Value:
        x = self.pick(4)
        mean = self.op(MeanOp, x, axes=(2, 3), keepdim=True)
        if self.below(2):
            return self.op(MulOp, x, self.op(ops.SigmoidOp, self.conv(mean, x.shape[1], 1)))
        return self.op(ReshapeOp, mean, shape=(x.shape[0], x.shape[1]))

    def _moved(self) -> Value:
        x = self.pick()
        dims = torch.randperm(x.type.rank, generator=self.generator).tolist()
        choices = (
            lambda: self.op(PermuteOp, x, dims=tuple(dims)),
            lambda: self.op(PermuteOp, self.op(PermuteOp, x, dims=tuple(dims)), dims=tuple(reversed(dims))),
            lambda: self.op(ReshapeOp, self.op(ReshapeOp, x, shape=(x.type.size,)), shape=x.shape),
            lambda: self.op(SliceOp, x, axis=x.type.rank - 1, start=0, stop=max(1, x.shape[-1] // 2)),
            lambda: self.op(AddOp, self.op(ExpandOp, self.number(1.5), shape=x.shape), x),
        )
        return choices[self.below(len(choices))]()

    def _linear(self) -> Value:
        return self.linear(self.pick(), (4, 6)[self.below(2)], bias=bool(self.below(2)))

    def _matmul(self) -> Value:
        x = self.pick()
        if x.type.rank < 2:
            return self.op(ops.ReluOp, x)
        if self.below(2):
            return self.op(AddOp, self.op(MatmulOp, x, self.weight(x.shape[-1], 5)), self.weight(5))
        rank = x.type.rank
        swapped = self.op(PermuteOp, x, dims=(*range(rank - 2), rank - 1, rank - 2))
        return self.op(MatmulOp, x, swapped)

    def _constants(self) -> Value:
        x = self.pick()
        made = self.op(AddOp, self.op(ops.ReluOp, self.weight(x.shape[-1])), self.number(0.25))
        return self.op(MulOp, x, made)

    def _row(self) -> Value:
        x = self.pick()
        if self.below(2):
            return self.op(SoftmaxOp, x, axis=x.type.rank - 1)
        return self.op(LayerNormOp, x, self.weight(x.shape[-1]), self.weight(x.shape[-1]))

    def _recurrent(self) -> Value:
        x = self.pick()
        columns, steps = x.shape[-1], min(8, x.type.size // x.shape[-1])
        rows = self.op(
            SliceOp, self.op(ReshapeOp, x, shape=(x.type.size // columns, columns)), axis=0, start=0, stop=steps
        )
        kind = (ops.LstmOp, ops.GruOp, ops.TanhRnnOp, ops.ReluRnnOp)[self.below(4)]
        gates = self.linear(self.op(ReshapeOp, rows, shape=(steps, 1, columns)), kind.gate_count * 6)
        rest = {ops.LstmOp: [self.weight(1, 6)], ops.GruOp: [self.weight(6)]}.get(kind, [])
        weight = self.weight(kind.gate_count * 6, 6)
        return self.op(kind, gates, weight, self.weight(1, 6), *rest, reverse=bool(self.below(2)))


def random_graph(seed: int, size: int) -> Graph:
    """A graph of about ``size`` steps with one to three outputs; the same for the same arguments."""
    return Grower({"x": TensorType((1, 4, 8, 8)), "y": TensorType((2, 6))}, seed).grown(size)


def random_graphs(max_size: int = 12) -> st.SearchStrategy[Graph]:
    """Strategy for `random_graph`; shrinks towards few steps."""
    return st.builds(random_graph, st.integers(0, 2**32 - 1), st.integers(1, max_size))
