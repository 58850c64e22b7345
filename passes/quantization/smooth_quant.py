"""``smooth-quant``: move the size of channels from an activation into the weights of the linear layers that read it.

Before::

    %2 = linear(%1, %w, %b)

After::

    %2 = mul(%1, %1.smoothing)                   1 / s, a number for each channel
    %3 = linear(%2, %w.smoothed, %b)             W s

An activation has one scale for all channels, so a few channels that are 20 or 100 times as large as the others leave
these with few steps: the transformers' case. Weights have one scale for each output channel, and are of one size along
the input channels. With ``s = max|x|^a / max|W|^(1 - a)`` both get some of the difference. The maxima of the activation
are those of the calibration data; those of the weights are over all layers that read it.

With ``alpha=none`` a is chosen for each activation: the one with the least error of its layers on a sample of the data,
if it is at most half of the error without smoothing, and else the activation is left alone. Where nothing else reads
the activation, the factors go into what makes it: the constant parameters of a layer norm, or the weights of a layer,
through ``relu``, poolings and the like. Elsewhere the multiplication becomes part of the kernel that rounds.

Runs before ``quantize-annotate``; ``quantize`` puts it there. Other readers of the activation go on reading it as it
was. Left alone are layers that ``skip`` names and those whose weights are computed at run time. Method: Xiao et al.,
"SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ir import DType, Graph, Rewriter, Value
from ...ir.ops import LayerNormOp, LayerOp, LinearOp, MulOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import numbers, prune, replace, tensor, was_changed, weight_name
from ..registry import register_pass
from ..unfuse import take_apart
from .channels import (
    channel_maxima,
    input_axis,
    input_weight_maxima,
    is_equivariant,
    multiply_inputs,
    output_axis,
    per_channel,
)
from .placement import check_patterns, float_layers, name_of, refusal, refuse_notes
from .sample import Sample
from .scheme import QuantizationStep, representable_weight
from .streaming import watch

_RULE = "smooth-quant"
_ALPHAS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
_GAIN = 0.5  # of the error is left at most, where smoothing is worth a multiplication
_SMALLEST = 1e-5  # of a maximum, relative to the largest one


@register_pass(_RULE, purpose="quantize")
class SmoothQuant(Pass):
    """Move the size of an activation's channels into the weights of the linear layers that read it.

    Attributes
    ----------
    alpha
        Share of the difference that the weights take, from 0 to 1; none chooses for each activation.
    convolutions
        Whether activations that convolutions read are smoothed too.
    skip
        Names of layers that stay as they are; ``*`` stands for anything.
    """

    alpha: float | None = None
    convolutions: bool = False
    skip: tuple[str, ...] = ()

    exactness = Exactness.CLOSE
    before_notes = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, or none, not {self.alpha:g}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        then = (Fuse(),) if take_apart(graph, rewriter, _RULE) else ()
        check_patterns(graph, self.skip)
        readers = self._readers(graph)
        if not readers:
            return Result(rewriter.changed, ("no activation can be smoothed",), then)
        seen = {value: _Seen(input_axis(layers[0])) for value, layers in readers.items()}
        watch(graph, readers.keys(), context, lambda value, batch: seen[value].add(batch))
        lines = []
        for value, layers in readers.items():
            alpha, line = self._choose(value, layers, seen[value])
            if alpha is not None and _smooth(value, layers, seen[value].factors(layers, alpha), rewriter):
                lines.append(line)
        return Result(rewriter.changed, (f"{len(lines)} of {len(readers)} activations smoothed", *lines), then)

    def _readers(self, graph: Graph) -> dict[Value, list[LayerOp]]:
        """Activations, and the layers that read each as their first operand."""
        kind = LayerOp if self.convolutions else LinearOp
        found: dict[Value, list[LayerOp]] = {}
        for op in float_layers(graph):
            if isinstance(op, kind) and not refusal(op, self.skip) and not was_changed(op.weight, _RULE):
                found.setdefault(op.x, []).append(op)
        return {value: layers for value, layers in found.items() if len({input_axis(op) for op in layers}) == 1}

    def _choose(self, value: Value, layers: Sequence[LayerOp], seen: _Seen) -> tuple[float | None, str]:
        """The share that the weights take, or None, and a line for the report."""
        before = _error(layers, seen, None)
        if self.alpha is not None:
            after = _error(layers, seen, seen.factors(layers, self.alpha))
            return self.alpha, f"{name_of(value)}: alpha {self.alpha:g}, error {before:.3g} -> {after:.3g}"
        errors = {alpha: _error(layers, seen, seen.factors(layers, alpha)) for alpha in _ALPHAS}
        best = min(errors, key=errors.__getitem__)
        if not errors[best] < _GAIN * before:
            return None, ""
        return best, f"{name_of(value)}: alpha {best:g}, error {before:.3g} -> {errors[best]:.3g}"


@dataclass
class _Seen:
    """What is kept of an activation: the largest magnitude of each channel, and a sample."""

    axis: int

    def __post_init__(self) -> None:
        self.maxima = torch.zeros(())
        self.sample = Sample()

    def add(self, batch: torch.Tensor) -> None:
        self.maxima = torch.maximum(self.maxima, channel_maxima(batch, self.axis))
        self.sample.add(batch)

    def factors(self, layers: Sequence[LayerOp], alpha: float) -> torch.Tensor:
        """float32 [channels]: what the activation is divided by; 1 where it or all weights are zero."""
        weights = torch.stack([input_weight_maxima(op, numbers(op.weight).double()) for op in layers]).amax(0)
        activation = self.maxima.double()
        dead = (activation == 0) | (weights == 0)
        activation, weights = (one.clamp(min=one.amax().item() * _SMALLEST) for one in (activation, weights))
        return torch.where(dead, 1.0, activation**alpha / weights ** (1 - alpha)).float()


def _error(layers: Sequence[LayerOp], seen: _Seen, factors: torch.Tensor | None) -> float:
    """Squared error of the layers in 8 bits, as a share of their squared results."""
    divisor = torch.ones(()) if factors is None else per_channel(factors, seen.axis)
    divided = [batch / divisor for batch in seen.sample.tensors]
    low, high = (min(one.min().item() for one in divided), max(one.max().item() for one in divided))
    step = QuantizationStep.covering(low, high, DType.U8)
    noise = power = 0.0
    for op in layers:
        weight = numbers(op.weight)
        rounded = representable_weight(weight if factors is None else multiply_inputs(op, weight, factors)).float()
        for exact, one in zip(seen.sample.tensors, divided, strict=True):
            expected = op.evaluate(exact, weight, None)
            found = op.evaluate(step.nearest(one), rounded, None)
            assert isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor)
            noise += (found - expected).double().square().sum().item()
            power += expected.double().square().sum().item()
    return noise / max(power, 1e-300)


def _smooth(value: Value, layers: Sequence[LayerOp], factors: torch.Tensor, rewriter: Rewriter) -> bool:
    """Divide the activation, and multiply the weights; False if the rewrite is not allowed."""
    order = {op: index for index, op in enumerate(rewriter.graph.ops)}
    axis = input_axis(layers[0])
    only = not value.is_output and set(value.users) == set(layers)
    maker = _maker(value, axis) if only else None
    if not rewriter.commit(_RULE, maker or min(layers, key=order.__getitem__)):
        return False
    for op in layers:
        _give(op, 1, multiply_inputs(op, numbers(op.weight), factors), rewriter)
    if maker is not None:
        _give(maker, 1, numbers(maker.weight) / per_channel(factors, -maker.weight.type.rank), rewriter)
        if maker.bias is not None:
            _give(maker, 2, numbers(maker.bias) / factors, rewriter)
        return True
    if only and isinstance(value.op, LayerNormOp) and _divide_norm(value.op, factors, rewriter):
        return True
    first = min(layers, key=order.__getitem__)
    inverse = rewriter.weight(per_channel(1 / factors, axis), f"{first.location or first.name}.smoothing")
    divided = rewriter.create(MulOp, (value, inverse)).result
    for op in layers:
        rewriter.set_operand(op, 0, divided)
    return True


def _maker(value: Value, axis: int) -> LayerOp | None:
    """The layer with constant weights that makes the channels of ``value``, if factors pass from it to ``value``."""
    while value.op is not None:
        op = value.op
        if isinstance(op, LayerOp):
            fits = output_axis(op) == axis and not refusal(op, ()) and op.result.type.dtype is DType.F32
            return op if fits else None
        if op.result.type.rank != op.inputs[0].type.rank or not is_equivariant(op, axis):
            return None
        value = op.inputs[0]
        if not value.has_one_use:
            return None
    return None


def _give(op: LayerOp, index: int, tensor: torch.Tensor, rewriter: Rewriter) -> None:
    """Another weight or bias."""
    old = op.operands[index]
    assert old is not None
    rewriter.set_operand(op, index, rewriter.weight(tensor, weight_name(old, _RULE)))
    prune(rewriter, (old,))


def _divide_norm(norm: LayerNormOp, factors: torch.Tensor, rewriter: Rewriter) -> bool:
    """Divide the parameters of a layer norm, which are read anyway."""
    parameters = [norm.gamma, norm.beta]
    if norm.attrs.dims != 1 or norm.gamma is None or any(tensor(one) is None for one in parameters if one is not None):
        return False
    fresh = [
        None if one is None else rewriter.weight(numbers(one) / factors, weight_name(one, _RULE)) for one in parameters
    ]
    made = rewriter.create(LayerNormOp, (norm.x, *fresh), norm.attrs, location=norm.location)
    replace(rewriter, norm, made.result)
    return True
