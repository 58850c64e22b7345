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

from collections.abc import Sequence
from dataclasses import replace as replace_fields
from enum import Enum
from typing import Annotated

from ...ir import DType, Graph, Rewriter, TersorError
from ...ir.ops import LinearOp, RelayoutOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import largest_deviation, seeded_inputs
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..report import Verdict
from ..unfuse import take_apart
from .packed_layers import ACTIVATIONS
from .packed_weights import DAMPING, WeightFormat, choose_packed, float_linears, packing_refusal
from .placement import check_patterns, name_of, refuse_notes

_RULE = "quantize-weights"
_WITH_OTHERS = "alone not faster, with the others it is"


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
    damping: float = DAMPING
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        _ = self._format  # raises what is wrong with it
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, not {self.damping:g}")

    @property
    def _format(self) -> WeightFormat:
        return WeightFormat(self.bits, self.group, self.activations)

    @property
    def needs_data(self) -> bool:
        return self.method is Rounding.GPTQ

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(float_linears(part) for part in graph.parts):
            return Result(False, ("no linear layer has a weight of f32",))
        if context.target is not None and not context.target.integer_kernels:
            raise TersorError(f"{context.target.name} has no kernels for integers of few bits; leave out {_RULE}")
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError(f"layouts are chosen already; run {_RULE} before layout")
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        check_patterns(graph, self.skip)
        layers = [op for op in float_linears(graph) if not self._is_refused(op, rewriter)]
        layers, lines = self._judged(graph, layers, context)
        if layers:
            lines = (*self._pack(graph, layers, rewriter, context), *lines)
        return Result(rewriter.changed, lines, (Fuse(),) if fused else ())

    def _is_refused(self, op: LinearOp, rewriter: Rewriter) -> bool:
        reason = packing_refusal(op, self.skip)
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
            pair = (self._format.draft(graph, fast), self._format.draft(graph, layers))
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
        whole = referee.judge_whole(graph, self._format.draft(graph, chosen))
        return chosen if whole.stays else [], (whole.note, *lines)

    def _trial(self, op: LinearOp) -> Trial:
        return Trial(name_of(op.result), (self._format.pair(op),))

    def _pack(
        self, graph: Graph, layers: Sequence[LinearOp], rewriter: Rewriter, context: PassContext
    ) -> tuple[str, ...]:
        original = graph.clone()
        writer = self._format.writer(rewriter, _RULE)
        before = after = 0
        damping = self.damping if self.needs_data else None
        for op, chosen in choose_packed(graph, layers, self._format, damping, context):
            size = op.weight.type.size
            writer.replace(op, chosen)
            before, after = before + 4 * size, after + size * self.bits // 8 + 4 * chosen.scale.numel()
        batches = [seeded_inputs(original)] if context.calibration is None else context.calibration
        error = largest_deviation(original, graph, batches)
        done = f"{len(layers)} layers with weights of {self.bits} bits: {before} -> {after} bytes"
        return (f"{done}; {error}" if error else done,)
