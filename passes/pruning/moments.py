"""Sums of products of what a layer reads and of what it should return, which is all that least squares needs.

Calibration batches run through two networks: the original, which says what a layer should return (without its bias),
and the network as pruned so far, which says what the layer reads then. Positions of pictures are drawn from a seeded
generator. Of each layer stay the sums ``X'X`` and ``X'Y`` in float64, whatever the number of batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ...ir import DType, Graph, Op, TersorError, Value, evaluate_op, is_constant
from ...ir.ops import Conv2dOp, LinearOp, WeightOp
from ..matching import numbers as numbers_of
from .readers import Reader
from .shrink import Numbers

POSITIONS = 64  # of each picture, or rows of a linear layer for each index of its first dimension
MOST_UNKNOWNS = 8192  # of one output: the sums are a matrix of as many rows and columns


@dataclass
class LayerSums:
    """Sums over all rows: positions of all pictures.

    Attributes
    ----------
    reader
        The layer.
    gram
        ``X'X`` of each of its groups, ``[G, U, U]``; the unknowns U are those of one filter, channel by channel.
    cross
        ``X'Y``, ``[G, U, O / G]``.
    x, y
        Sums of X and Y, ``[G, U]`` and ``[G, O / G]``.
    energy
        Sum of the squares of Y.
    rows
        How many were summed.
    batches
        How many batches they came from.
    """

    reader: Reader
    gram: torch.Tensor
    cross: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    energy: float = 0.0
    rows: int = 0
    batches: int = 0

    @property
    def taps(self) -> int:
        """Unknowns of one channel: positions of the window."""
        return self.gram.shape[1] // len(self.reader.kernels)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Rows ``x`` [N, G, U] and ``y`` [N, G, O / G] of one batch."""
        if not bool(x.isfinite().all() and y.isfinite().all()):
            raise TersorError(f"calibration data leads to numbers that are not finite at {self.reader.op.describe()}")
        x, y = x.double().transpose(0, 1), y.double().transpose(0, 1)
        self.gram += x.transpose(1, 2) @ x
        self.cross += x.transpose(1, 2) @ y
        self.x += x.sum(1)
        self.y += y.sum(1)
        self.energy += float(y.square().sum())
        self.rows += x.shape[1]
        self.batches += 1

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as ``[G, U, O / G]`` in float64."""
        groups = self.gram.shape[0]
        return weight.double().reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)

    def error(self, matrix: torch.Tensor, shift: torch.Tensor) -> float:
        """What outputs ``X matrix + shift`` are off by: root mean square, over that of Y."""
        squares = self.energy - 2 * float((self.cross * matrix).sum()) + float((matrix * (self.gram @ matrix)).sum())
        squares += float((shift * (2 * ((self.x[:, None] @ matrix)[:, 0] - self.y) + self.rows * shift)).sum())
        return float(np.sqrt(max(0.0, squares) / self.energy)) if self.energy else 0.0

    def unknowns(self, channels: NDArray[np.bool_]) -> torch.Tensor:
        """Indices of the unknowns of some of the weight's input channels."""
        return torch.from_numpy(np.flatnonzero(np.repeat(channels, self.taps)))


def _is_shared(op: Op, value: Value) -> bool:
    """Whether anything else reads the weight that ``value`` is."""
    if not isinstance(value.op, WeightOp) or op.graph is None:
        return False
    id = value.op.attrs.id
    return sum(len(one.result.uses) for one in op.graph.ops if isinstance(one, WeightOp) and one.attrs.id == id) > 1


def refusal(reader: Reader) -> str:
    """Why no sums of this layer are made; empty if they are."""
    op = reader.op
    if not isinstance(op, Conv2dOp | LinearOp):
        return "only convolutions and linear layers are fitted"
    if reader.weight_id is None or op.inputs[1].type.dtype is not DType.F32 or op.result.type.dtype is not DType.F32:
        return "its weight is no float32 constant"
    if op.bias is not None and not is_constant(op.bias):
        return "its bias is computed"
    if any(_is_shared(op, value) for value in (op.weight, op.bias) if value is not None):
        return "other ops share its weight or bias"
    unknowns = op.weight.type.size // op.weight.shape[0]
    if unknowns > MOST_UNKNOWNS:
        return f"each output has {unknowns} unknowns, more than {MOST_UNKNOWNS}"
    return ""


def collect(
    graph: Graph, numbers: Numbers, readers: Sequence[Reader], batches: Iterable[Sequence[torch.Tensor]], seed: int
) -> dict[Op, LayerSums]:
    """Sums for some layers, of what they read with other ``numbers`` and of what they return in ``graph`` itself."""
    found = {reader.op: _empty(reader) for reader in readers}
    outputs = _Part(graph, [reader.op.results[0] for reader in readers])
    inputs = _Part(graph, [reader.x for reader in readers])
    for index, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        wanted, read = outputs.run(batch, {}), inputs.run(batch, numbers)
        for reader in readers:
            x, y = _rows(reader.op, read[reader.x], wanted[reader.op.results[0]], generator)
            bias = reader.bias
            found[reader.op].add(x, y if bias is None else y - numbers_of(bias).reshape(y.shape[1:]))
    return found


def _empty(reader: Reader) -> LayerSums:
    outputs, *kernel = reader.op.inputs[1].shape
    groups = reader.op.channel_groups
    unknowns, share = math.prod(kernel), outputs // groups
    gram, cross, x, y = (
        torch.zeros(groups, *shape, dtype=torch.float64)
        for shape in ((unknowns, unknowns), (unknowns, share), (unknowns,), (share,))
    )
    return LayerSums(reader, gram, cross, x, y)


class _Part:
    """The part of a graph that some values depend on."""

    def __init__(self, graph: Graph, wanted: Sequence[Value]) -> None:
        self.graph, self.wanted = graph, set(wanted)
        needed, self.ops = set(wanted), list[Op]()
        for op in reversed(graph.ops):
            if any(result in needed for result in op.results):
                needed.update(op.inputs)
                self.ops.insert(0, op)
        self.reads = Counter(value for op in self.ops for value in op.inputs)

    def run(self, batch: Sequence[torch.Tensor], numbers: Mapping[str, torch.Tensor]) -> dict[Value, torch.Tensor]:
        """The wanted values, with other numbers in some weights."""
        values: dict[Value, torch.Tensor] = dict(zip(self.graph.inputs, self.graph.with_state(batch), strict=True))
        remaining = self.reads.copy()
        with torch.no_grad():
            for op in self.ops:
                is_other = isinstance(op, WeightOp) and op.attrs.id in numbers
                operands = [None if value is None else values[value] for value in op.operands]
                results = (numbers[op.attrs.id],) if is_other else evaluate_op(op, operands)
                values.update(zip(op.results, results, strict=True))
                for value in op.inputs:
                    remaining[value] -= 1
                    if not remaining[value] and value not in self.wanted:
                        del values[value]
        return {value: values[value] for value in self.wanted}


def _rows(op: Op, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of X [N, G, U] and Y [N, G, O / G], at positions drawn for the batch."""
    if isinstance(op, LinearOp):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        most = POSITIONS * (op.x.shape[0] if op.x.type.rank > 1 else 1)
        chosen = torch.randperm(len(x), generator=generator)[:most]
        return x[chosen, None], y[chosen, None]
    attrs, kernel = op.attrs, op.inputs[1].shape[2:]
    top, left, bottom, right = attrs.padding
    spans = [step * (extent - 1) + 1 for step, extent in zip(attrs.dilation, kernel, strict=True)]
    windows = functional.pad(x, (left, right, top, bottom))
    windows = windows.unfold(2, spans[0], attrs.stride[0]).unfold(3, spans[1], attrs.stride[1])
    windows = windows[..., :: attrs.dilation[0], :: attrs.dilation[1]]
    height, width = y.shape[2:]
    chosen = torch.randperm(height * width, generator=generator)[:POSITIONS]
    down, across = chosen // width, chosen % width
    taken = windows[:, :, down, across].movedim(2, 1)  # [N, S, C, KH, KW]
    groups = attrs.groups
    rows = taken.reshape(len(x) * len(chosen), groups, -1)
    return rows, y[:, :, down, across].movedim(2, 1).reshape(len(rows), groups, -1)
