"""``quantize-weights``: weights of linear layers as integers of 4 or 8 bits, with a scale for each group of inputs.

Before::

    %1 = linear(%x, %w, %b)                                         : f32[1,4096]    w: f32[4096,25088]

After::

    %1 = packed_linear(%x, %w.i4, %w.scale, %b) {bits=4, group=64}  : f32[1,4096]    w.i4: i8[4096,12544]

A layer with few rows takes the time in which its weight comes from memory. Integers of 4 bits with an f32 scale for
each 64 of them are 0.56 bytes a weight, instead of four. Kernels unpack them in registers
(`tersor.targets.templates.matmul.packed`).

With ``activations=i8``, rows of the operand are rounded to 8-bit integers when the network runs, each with a scale that
its largest magnitude gives, so products are those of integers (`packed_layers`). No range has to be calibrated.

With ``method=round``, each weight becomes the nearest integer, and the largest number of each group its smallest or
largest one. With ``gptq``, scales may be smaller, so that a few weights saturate where this makes the layer's error
smaller, and the integers are chosen one input after another: those that are left make up for the error so far. Layers
that come later see what the earlier ones make with their new weights, and a new bias keeps the mean of each output.

The referee asks for each layer whether the target is faster with the packed weight, once more about all those together
that are not faster alone (alone, a small weight may stay in the caches), and at last about the whole graph. Refused:
weights that are computed at run time or not finite, and a number of inputs that is no multiple of 8.

Methods: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023;
groups with scales of their own: Dettmers and Zettlemoyer, "The case for 4-bit precision", ICML 2023; scales of rows at
run time: Yao et al., "ZeroQuant", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace as replace_fields
from enum import Enum
from typing import Annotated

import torch

from ...ir import DType, Graph, Rewriter, TersorError, Value, graph_of, is_constant
from ...ir.ops import LinearOp, RelayoutOp
from ...ir.ops.packed import GROUP_STEP, PackedLinearAttrs, spread
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import numbers, tensor
from ..numeric import largest_deviation, seeded_inputs
from ..progress import Remaining
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..report import Verdict
from ..unfuse import take_apart
from .moments import Moments, in_portions
from .packed_layers import ACTIVATIONS, PackedLayer, PackedLayers
from .placement import check_patterns, is_skipped, name_of, refuse_notes
from .streaming import watch
from .weight_groups import best_scales, compensated_integers, largest_scales, nearest_integers

_RULE = "quantize-weights"
_WITH_OTHERS = "alone not faster, with the others it is"
_BYTES = 2**30  # of moments at a time


class Rounding(Enum):
    """How the integers of a weight are chosen."""

    GPTQ = "gptq"
    ROUND = "round"


@register_pass(_RULE, purpose="quantize")
class QuantizeWeights(Pass):
    """Store the weights of linear layers as integers of 4 or 8 bits, where the target is faster with these.

    Attributes
    ----------
    bits
        Of an integer, 4 or 8.
    group
        Inputs that share a scale, a multiple of 8; the last group of a layer may be shorter. 0 for all inputs.
    activations
        ``f32``: only weights are rounded. ``i8``: rows of activations too, with scales that are computed at run time.
    method
        ``gptq``, which needs calibration data, or ``round``: to the nearest integer.
    skip
        Names of layers that stay as they are; ``*`` stands for anything.
    damping
        Of ``gptq``: added to the diagonal of the covariance of a layer's operand, as a share of its mean.
    keep
        Whether only layers change that the target measures faster, or all that can.
    """

    bits: int = 4
    group: int = 64
    activations: Annotated[DType, ACTIVATIONS] = DType.F32
    method: Rounding = Rounding.GPTQ
    skip: tuple[str, ...] = ()
    damping: float = 0.01
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        PackedLinearAttrs(self.bits, self.group or GROUP_STEP)
        if self.activations not in ACTIVATIONS:
            raise ValueError(f"activations must be f32 or i8, not {self.activations.value}")
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    @property
    def needs_data(self) -> bool:
        return self.method is Rounding.GPTQ

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(_float_linears(part) for part in graph.parts):
            return Result(False, ("no linear layer has a weight of f32",))
        if context.target is not None and not context.target.integer_kernels:
            raise TersorError(f"{context.target.name} has no kernels for integers of few bits; leave out {_RULE}")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError(f"layouts are chosen already; run {_RULE} before layout")
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        check_patterns(graph, self.skip)
        layers = [op for op in _float_linears(graph) if not self._is_refused(op, rewriter)]
        layers, lines = self._judged(graph, layers, context)
        if layers:
            lines = (*self._pack(graph, layers, rewriter, context), *lines)
        return Result(rewriter.changed, lines, (Fuse(),) if fused else ())

    def _is_refused(self, op: LinearOp, rewriter: Rewriter) -> bool:
        reason = _refusal(op, self.skip)
        if reason:
            rewriter.refuse(_RULE, op, reason)
        return bool(reason)

    def _judged(
        self, graph: Graph, layers: Sequence[LinearOp], context: PassContext
    ) -> tuple[list[LinearOp], tuple[str, ...]]:
        """Layers that are to change, and the referee's lines where it has measured."""
        if context.latency is None or not layers:
            return list(layers), ()
        alone = Referee(self.keep, context.latency)
        verdicts = dict(zip(layers, alone.judge_all([self._trial(op) for op in layers]), strict=True))
        slow = [op for op in layers if not verdicts[op].stays]
        together: tuple[Verdict, ...] = ()
        if slow:
            fast = [op for op in layers if op not in slow]
            pair = (self._draft(graph, fast), self._draft(graph, layers))
            verdict = alone.judge(Trial(f"layers that alone are not faster ({len(slow)})", (pair,)))
            together = (verdict,)
            if verdict.stays:
                kept = {op: replace_fields(verdicts[op], stays=True, fault="", remark=_WITH_OTHERS) for op in slow}
                verdicts, slow = verdicts | kept, []
        final = (*verdicts.values(), *together)
        referee = Referee(self.keep, context.latency, context.verdicts)
        referee.verdicts.extend(final)
        chosen = [op for op in layers if op not in slow]
        lines = tuple(verdict.note for verdict in final)
        if not chosen:
            return [], lines
        whole = referee.judge_whole(graph, self._draft(graph, chosen))
        return chosen if whole.stays else [], (whole.note, *lines)

    def _trial(self, op: LinearOp) -> Trial:
        before = graph_of(op)
        (layer,) = _float_linears(before)
        return Trial(name_of(op.result), ((before, self._draft(before, (layer,))),))

    def _draft(self, graph: Graph, layers: Iterable[LinearOp]) -> Graph:
        """A copy with packed weights, for measuring: which integers they are makes no difference."""
        copy, mapping = graph.clone_with_map()
        writer = PackedLayers(Rewriter(copy), _RULE, self.bits, self.activations)
        for op in layers:
            twin = mapping[op.result].op
            assert isinstance(twin, LinearOp)
            writer.replace(twin, self._rounded(twin))
        return copy

    def _pack(
        self, graph: Graph, layers: Sequence[LinearOp], rewriter: Rewriter, context: PassContext
    ) -> tuple[str, ...]:
        original = graph.clone()
        remaining = Remaining(context.progress, "weights of layers", sum(op.weight.type.size for op in layers))
        writer = PackedLayers(rewriter, _RULE, self.bits, self.activations)
        before = after = 0
        for portion in in_portions(layers, _BYTES):
            moments = _moments(graph, portion, context) if self.needs_data else {}
            for op in portion:
                size = op.weight.type.size
                chosen = self._compensated(op, moments.pop(op)) if op in moments else self._rounded(op)
                writer.replace(op, chosen)
                before, after = before + 4 * size, after + size * self.bits // 8 + 4 * chosen.scale.numel()
                remaining.step(size)
        batches = [seeded_inputs(original)] if context.calibration is None else context.calibration
        error = largest_deviation(original, graph, batches)
        done = f"{len(layers)} layers with weights of {self.bits} bits: {before} -> {after} bytes"
        return (f"{done}; {error}" if error else done,)

    def _rounded(self, op: LinearOp) -> PackedLayer:
        weight, group = numbers(op.weight), self._group(op)
        scale = largest_scales(weight, self.bits, group)
        return PackedLayer(nearest_integers(weight, scale, self.bits, group), scale, group)

    def _compensated(self, op: LinearOp, moments: Moments) -> PackedLayer:
        weight, bits, group = numbers(op.weight).double(), self.bits, self._group(op)
        covariances = [one[0] for one in moments.covariances()]
        importance = torch.cat([one.diagonal() for one in covariances])
        scale = best_scales(weight, importance, bits, group)
        factors = spread(scale, group, weight.shape[1])
        blocks = zip(*(one.split(moments.blocks, 1) for one in (weight, factors)), covariances, strict=True)
        integers = torch.cat([compensated_integers(*block, bits, self.damping) for block in blocks], 1)
        _, mean = moments.means
        shift = ((weight - integers * factors) * mean).sum(1)
        bias = shift if op.bias is None else numbers(op.bias).double() + shift
        return PackedLayer(integers, scale, group, bias.float())

    def _group(self, op: LinearOp) -> int:
        return self.group or op.weight.shape[1]


def _float_linears(graph: Graph) -> list[LinearOp]:
    return [op for op in graph.ops if isinstance(op, LinearOp) and op.weight.type.dtype is DType.F32]


def _refusal(op: LinearOp, skip: Sequence[str]) -> str:
    """Why a layer stays as it is; empty if it need not."""
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
