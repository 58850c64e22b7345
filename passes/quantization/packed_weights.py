"""Weights of linear layers as integers of few bits: which layers, how their weights are rounded, what replaces them.

What ``quantize-weights`` does for whole networks, and ``quantize`` for the layers of which its budget says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...ir import DType, Graph, Rewriter, Value, graph_of, is_constant
from ...ir.ops import LinearOp
from ...ir.ops.packed import GROUP_STEP, PackedLinearAttrs, spread
from ..base import PassContext
from ..matching import numbers, tensor
from ..progress import Remaining
from .moments import Moments, in_portions
from .packed_layers import ACTIVATIONS, PackedLayer, PackedLayers
from .placement import is_skipped
from .streaming import watch
from .weight_groups import best_scales, compensated_integers, largest_scales, nearest_integers

DAMPING = 0.01  # of GPTQ, where nothing else is said
_BYTES = 2**30  # of moments at a time


@dataclass(frozen=True)
class WeightFormat:
    """What weights become.

    Attributes
    ----------
    bits
        Of an integer, 4 or 8.
    group
        Inputs that share a scale, a multiple of 8; the last group of a layer may be shorter. 0 for all inputs.
    activations
        ``f32``, or ``i8`` for rows that are rounded at run time.
    """

    bits: int = 4
    group: int = 64
    activations: DType = DType.F32

    def __post_init__(self) -> None:
        PackedLinearAttrs(self.bits, self.group or GROUP_STEP)
        if self.activations not in ACTIVATIONS:
            raise ValueError(f"activations must be f32 or i8, not {self.activations.value}")

    def rounded(self, op: LinearOp) -> PackedLayer:
        """A layer with the nearest integers."""
        weight, group = numbers(op.weight), self._group(op)
        scale = largest_scales(weight, self.bits, group)
        return PackedLayer(nearest_integers(weight, scale, self.bits, group), scale, group)

    def compensated(self, op: LinearOp, moments: Moments, damping: float) -> PackedLayer:
        """A layer with the integers that GPTQ chooses, and a bias that keeps the mean of each output."""
        weight, bits, group = numbers(op.weight).double(), self.bits, self._group(op)
        covariances = [one[0] for one in moments.covariances()]
        importance = torch.cat([one.diagonal() for one in covariances])
        scale = best_scales(weight, importance, bits, group)
        factors = spread(scale, group, weight.shape[1])
        blocks = zip(*(one.split(moments.blocks, 1) for one in (weight, factors)), covariances, strict=True)
        integers = torch.cat([compensated_integers(*block, bits, damping) for block in blocks], 1)
        _, mean = moments.means
        shift = ((weight - integers * factors) * mean).sum(1)
        bias = shift if op.bias is None else numbers(op.bias).double() + shift
        return PackedLayer(integers, scale, group, bias.float())

    def writer(self, rewriter: Rewriter, rule: str) -> PackedLayers:
        """Puts layers of this format into a graph."""
        return PackedLayers(rewriter, rule, self.bits, self.activations)

    def draft(self, graph: Graph, layers: Iterable[LinearOp]) -> Graph:
        """A copy with packed weights, for measuring: which integers they are makes no difference."""
        copy, mapping = graph.clone_with_map()
        writer = self.writer(Rewriter(copy), "draft")
        for op in layers:
            twin = mapping[op.result].op
            assert isinstance(twin, LinearOp)
            writer.replace(twin, self.rounded(twin))
        return copy

    def pair(self, op: LinearOp) -> tuple[Graph, Graph]:
        """A layer alone, as it is and with a packed weight."""
        before = graph_of(op)
        return before, self.draft(before, float_linears(before))

    def _group(self, op: LinearOp) -> int:
        return self.group or op.weight.shape[1]


def float_linears(graph: Graph) -> list[LinearOp]:
    """Linear layers with a weight of f32, in execution order."""
    return [op for op in graph.ops if isinstance(op, LinearOp) and op.weight.type.dtype is DType.F32]


def packing_refusal(op: LinearOp, skip: Sequence[str]) -> str:
    """Why the weight of a layer stays as it is; empty if it need not."""
    if is_skipped(op, skip):
        return "it is to be skipped"
    if is_constant(op.x):
        return "its operand is a constant"
    known = [tensor(value) for value in (op.weight, op.bias) if value is not None]
    if any(one is None for one in known):
        return "its weight or bias is computed at run time, or not loaded"
    if not all(bool(one.isfinite().all()) for one in known if one is not None):
        return "its weight or bias has numbers that are not finite"
    outputs, inputs = op.weight.shape
    if not outputs or not inputs or inputs % GROUP_STEP:
        return f"it has {inputs} inputs, which is no multiple of {GROUP_STEP}"
    return ""


def choose_packed(
    graph: Graph, layers: Sequence[LinearOp], form: WeightFormat, damping: float | None, context: PassContext
) -> Iterator[tuple[LinearOp, PackedLayer]]:
    """Layers with what their weights become, in this order.

    By GPTQ with this ``damping``, on the calibration data; the nearest integers where it is None. As many layers at a
    time as their moments fit into memory: the graph may be changed in between, and later ones see what earlier ones
    make then.
    """
    remaining = Remaining(context.progress, "weights of layers", sum(op.weight.type.size for op in layers))
    for portion in in_portions(layers, _BYTES):
        moments = {} if damping is None else _moments(graph, portion, context)
        for op in portion:
            size = op.weight.type.size
            yield op, form.rounded(op) if damping is None else form.compensated(op, moments.pop(op), damping)
            remaining.step(size)


def _moments(graph: Graph, layers: Sequence[LinearOp], context: PassContext) -> dict[LinearOp, Moments]:
    found = {op: Moments(op) for op in layers}
    readers: dict[Value, list[LinearOp]] = {}
    for op in layers:
        readers.setdefault(op.x, []).append(op)

    def see(value: Value, batch: torch.Tensor) -> None:
        for op in readers[value]:
            found[op].add(batch, batch)

    watch(graph, readers.keys(), context, see)
    return found
