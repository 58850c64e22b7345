"""``cross-layer-equalization``: channels between two layers get weights of one size, and large biases move on.

Before::

    %2 = conv2d(%1, %w1, %b1)
    %3 = relu(%2)
    %4 = conv2d(%3, %w2, %b2)

After::

    %2 = conv2d(%1, %w1.equalized, %b1.equalized)          W1 / s, b1 / s - c
    %3 = relu(%2)
    %4 = conv2d(%3, %w2.equalized, %b2.equalized)          W2 s, b2 + W2 s c

Multiplying a channel by a positive number passes through ``relu``, leaky ``relu``, poolings and the like. With r1 the
largest weight that makes a channel and r2 the largest that reads it, ``s = r1 / sqrt(r1 r2)`` makes both equal to the
geometric mean. A depthwise layer between two others has the same channels on both sides: the three are made equal to
the cube root of their product. A layer that is in several pairs is equalized again and again, until nothing changes.
Bounds of a ``clamp`` (ReLU6) become a vector, so the network computes what it did.

- A channel is never made larger than the largest one was: s is at least the channel's largest number divided by that of
  all channels, on the calibration data. So the activation, which has one scale, loses nothing.
- Absorption: where a channel is never below ``c > 0`` before the ``relu`` on the calibration data, its bias is lowered
  by c, and the next layer's raised by what it makes of c, if that layer pads nothing.

Gives most where weights have one scale a tensor, or activations have channels of very different sizes. Runs before
``quantize-annotate``; ``quantize`` puts it there. Activations that several ops read are left alone, and layers that
``skip`` names. Method: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019 (sections 4.1 and 4.1.3, with measured instead of assumed distributions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ...ir import Graph, Op, Rewriter, Value
from ...ir.ops import ClampOp, LayerOp, MaxPool2dOp, MinimumOp, ReluOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import bias_name, numbers, prune, weight_name
from ..registry import register_pass
from ..unfuse import take_apart
from .channels import (
    axis_behind,
    channel_maxima,
    input_axis,
    input_weight_maxima,
    is_equivariant,
    multiply_inputs,
    output_axis,
    per_channel,
)
from .placement import check_patterns, float_layers, refusal, refuse_notes
from .streaming import watch

_RULE = "cross-layer-equalization"
_ROUNDS = 50
_SAME = 0.01  # a factor that is nearer to 1 is 1


@register_pass(_RULE, purpose="quantize")
class CrossLayerEqualization(Pass):
    """Give the weights on both sides of each channel one size, and move large biases to the next layer.

    Attributes
    ----------
    absorb
        Whether biases that keep a channel above zero move to the next layer.
    skip
        Names of layers that stay as they are; ``*`` stands for anything.
    """

    absorb: bool = True
    skip: tuple[str, ...] = ()

    exactness = Exactness.APPROXIMATE
    before_notes = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        then = (Fuse(),) if take_apart(graph, rewriter, _RULE) else ()
        check_patterns(graph, self.skip)
        edges = _edges([op for op in float_layers(graph) if not refusal(op, self.skip)])
        if not edges:
            return Result(rewriter.changed, ("no two layers with only scale-equivariant ops between them",), then)
        _observe(graph, edges, context)
        _equalize(edges)
        absorbed = sum(edge.absorb() for edge in edges) if self.absorb else 0
        changed = [edge for edge in edges if edge.is_changed]
        spread = max((edge.spread for edge in changed), default=1.0)
        _rewrite(changed, rewriter)
        note = f"{len(changed)} of {len(edges)} pairs of layers equalized, by {spread:.3g} at most"
        return Result(rewriter.changed, (f"{note}; {absorbed} biases absorbed",), then)


@dataclass(eq=False)
class _Edge:
    """Channels between two layers.

    Attributes
    ----------
    before, path, after
        The layer that makes them, the ops between, and the layer that reads them.
    scale
        float64 [channels]: what the channels are divided by.
    shift
        float64 [channels]: what is subtracted from the divided channels.
    low, high
        Smallest and largest number of each channel that the first layer makes.
    largest
        Largest magnitude of each channel that the second layer reads.
    """

    before: LayerOp
    path: tuple[Op, ...]
    after: LayerOp
    scale: torch.Tensor
    shift: torch.Tensor
    low: torch.Tensor = field(default_factory=lambda: torch.full((), torch.inf, dtype=torch.float64))
    largest: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def is_changed(self) -> bool:
        return bool((self.scale != 1).any() or (self.shift != 0).any())

    @property
    def spread(self) -> float:
        return (self.scale.max() / self.scale.min()).item()

    def bound(self) -> None:
        """Make no channel larger than the largest was, and leave alone what would hardly change."""
        self.scale = torch.maximum(self.scale, self.largest / self.largest.amax().clamp(min=1e-30))
        if bool(((self.scale - 1).abs() < _SAME).all()):
            self.scale = torch.ones_like(self.scale)

    def absorb(self) -> int:
        """Let the next layer add what the channels never fall below; returns the number of channels."""
        rectified = len(self.path) == 1 and isinstance(self.path[0], ReluOp | ClampOp)
        if not rectified or any(getattr(self.after.attrs, "padding", ())):
            return 0
        upper = self.path[0].attrs.max if isinstance(self.path[0], ClampOp) else math.inf
        self.shift = self.low.clamp(min=0, max=0.9 * upper) / self.scale
        return int((self.shift > 0).sum())


def _edges(layers: Sequence[LayerOp]) -> list[_Edge]:
    """All pairs of layers between which a number for each channel can be moved."""
    found = []
    known = set(layers)
    for op in layers:
        path: list[Op] = []
        value, axis = op.result, output_axis(op)
        while value.has_one_use and value.users and _is_equivariant(value.users[0], axis, path):
            path.append(value.users[0])
            axis = axis_behind(path[-1], axis)
            value = path[-1].result
        reader = value.users[0] if value.has_one_use and value.users else None
        if isinstance(reader, LayerOp) and reader in known and reader.x is value and input_axis(reader) == axis:
            ones = torch.ones(op.weight.shape[0], dtype=torch.float64)
            found.append(_Edge(op, tuple(path), reader, ones, torch.zeros_like(ones)))
    return found


def _is_equivariant(op: Op, axis: int, path: Sequence[Op]) -> bool:
    """Whether positive factors along dimension ``axis`` pass through ``op``, behind the ops of ``path``."""
    if isinstance(op, ClampOp):
        monotone = all(isinstance(one, ReluOp | MaxPool2dOp) for one in path)
        return monotone and op.attrs.min == 0 and op.attrs.max > 0
    return is_equivariant(op, axis)


def _observe(graph: Graph, edges: Sequence[_Edge], context: PassContext) -> None:
    """What the channels take in the calibration data."""
    made = {edge.before.result: edge for edge in edges}
    read = {edge.after.x: edge for edge in edges}

    def see(value: Value, batch: torch.Tensor) -> None:
        if value in made:
            edge = made[value]
            dims = [dim for dim in range(batch.ndim) if dim != output_axis(edge.before) % batch.ndim]
            edge.low = torch.minimum(edge.low, batch.amin(dims).double())
        if value in read:
            edge = read[value]
            edge.largest = torch.maximum(edge.largest, channel_maxima(batch, input_axis(edge.after)).double())

    watch(graph, {*made, *read}, context, see)


def _equalize(edges: Sequence[_Edge]) -> None:
    """Find the factors of all edges."""
    weights = {op: numbers(op.weight).double() for edge in edges for op in (edge.before, edge.after)}
    into = {edge.after: edge for edge in edges}
    for _ in range(_ROUNDS):
        change = 0.0
        for edge in edges:
            first = into.get(edge.before) if _is_depthwise(edge.before) else None
            if first is not None:
                change = max(change, _equalize_three(first, edge, weights))
            elif not (_is_depthwise(edge.after) and any(other.before is edge.after for other in edges)):
                change = max(change, _equalize_two(edge, weights))
        if change < _SAME:
            break
    for edge in edges:
        edge.bound()


def _equalize_two(edge: _Edge, weights: dict[LayerOp, torch.Tensor]) -> float:
    made, read = _sizes(edge, weights)
    return _divide(edge, torch.where((made > 0) & (read > 0), (made / read).sqrt(), 1.0), weights)


def _equalize_three(first: _Edge, second: _Edge, weights: dict[LayerOp, torch.Tensor]) -> float:
    """Around a depthwise layer."""
    one, two = _sizes(first, weights)
    _, three = _sizes(second, weights)
    usable = (one > 0) & (two > 0) & (three > 0)
    root = (one * two * three).clamp(min=1e-300) ** (1 / 3)
    change = _divide(first, torch.where(usable, one / root, 1.0), weights)
    return max(change, _divide(second, torch.where(usable, root / three.clamp(min=1e-300), 1.0), weights))


def _sizes(edge: _Edge, weights: dict[LayerOp, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest weights that make and that read each channel."""
    made = weights[edge.before].flatten(1).abs().amax(1)
    return made, input_weight_maxima(edge.after, weights[edge.after])


def _divide(edge: _Edge, factors: torch.Tensor, weights: dict[LayerOp, torch.Tensor]) -> float:
    """Divide the channels once more; returns the largest relative change."""
    edge.scale = edge.scale * factors
    before, after = weights[edge.before], weights[edge.after]
    weights[edge.before] = before / per_channel(factors, -before.ndim)
    weights[edge.after] = multiply_inputs(edge.after, after, factors)
    return (factors.log().abs().amax()).item()


def _is_depthwise(op: LayerOp) -> bool:
    return op.channel_groups > 1 and op.channel_groups == op.weight.shape[0] == op.x.shape[1]


def _rewrite(edges: Sequence[_Edge], rewriter: Rewriter) -> None:
    """Give all layers their weights and biases; all edges or, where bisection forbids one, those before it."""
    for edge in edges:
        if not rewriter.commit(_RULE, edge.before):
            return
        _divide_made(edge, rewriter)
        _multiply_read(edge, rewriter)
        for op in edge.path:
            if isinstance(op, ClampOp) and op.attrs.max < torch.inf:
                _bound_by_vector(op, edge, rewriter)


def _divide_made(edge: _Edge, rewriter: Rewriter) -> None:
    op = edge.before
    weight = numbers(op.weight).double() / per_channel(edge.scale, -op.weight.type.rank)
    _give(op, 1, weight, rewriter)
    if op.bias is not None:
        _give(op, 2, numbers(op.bias).double() / edge.scale - edge.shift, rewriter)
    elif bool(edge.shift.any()):
        _give(op, 2, -edge.shift, rewriter)


def _multiply_read(edge: _Edge, rewriter: Rewriter) -> None:
    op = edge.after
    weight = multiply_inputs(op, numbers(op.weight).double(), edge.scale)
    if bool(edge.shift.any()):
        taps = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
        shifts = edge.shift.reshape(op.channel_groups, -1).repeat_interleave(len(taps) // op.channel_groups, 0)
        raised = (taps * shifts).sum(1)
        _give(op, 2, raised if op.bias is None else numbers(op.bias).double() + raised, rewriter)
    _give(op, 1, weight, rewriter)


def _give(op: LayerOp, index: int, tensor: torch.Tensor, rewriter: Rewriter) -> None:
    """Another weight or bias, placed before the layer."""
    old = op.operands[index]
    name = bias_name(op, _RULE) if old is None else weight_name(old, _RULE)
    rewriter.set_operand(op, index, rewriter.weight(tensor.float(), name))
    if old is not None:
        prune(rewriter, (old,))


def _bound_by_vector(op: ClampOp, edge: _Edge, rewriter: Rewriter) -> None:
    """``max(min(x, bounds), 0)``, a bound for each channel; the minimum is taken right behind the layer."""
    bounds = per_channel(op.attrs.max / edge.scale - edge.shift, output_axis(edge.before)).float()
    vector = rewriter.weight(bounds, f"{op.location or edge.before.location or op.name}.bounds")
    made = edge.before.result
    bounded = rewriter.create(MinimumOp, (made, vector), after=True)
    for use in made.uses:
        if use.user is not bounded and isinstance(use.user, Op):
            rewriter.set_operand(use.user, use.index, bounded.result)
    rewriter.update(op, replace(op.attrs, max=math.inf))
