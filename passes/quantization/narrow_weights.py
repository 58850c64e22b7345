"""``narrow-weights``: weights of 7 bits, where the target multiplies these faster and they lose little.

Before::

    %2 = observe(%1) {high=5.25}
    %3 = conv2d(%2, %w, %b)

After::

    %2 = observe(%1) {high=5.25, weight_bits=7}
    %3 = conv2d(%2, %w, %b)

x86 processors without VNNI multiply bytes in pairs, and the sum of two products saturates at 16 bits: exact sums need
weights of 7 bits, or else bytes that are widened first, which takes about twice the time. For other targets, which
`Machine.weight_bits` tells, nothing changes. Rounding to 7 bits makes twice the error of 8. It stays within
``min_sqnr``, the ratio of a weight to the error of rounding it, or the weight keeps 8 bits. Layers that read one value
are decided on together, since the bits stand in the note about it.

An accuracy pass by its place: on calibrated notes, before ``bias-correction``, ``gptq`` and ``adaround``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir import Graph
from ...ir.ops import LayerOp, ObserveOp
from ..base import Exactness, Pass, PassContext, Result
from ..matching import numbers
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from .integer_graph import integer_twin, step_of
from .placement import name_of, noted_layers
from .quality import Ratio
from .scheme import largest_weight, representable_weight

_RULE = "narrow-weights"


@register_pass(_RULE, purpose="quantize")
class NarrowWeights(Pass):
    """Give weights 7 bits where the target multiplies these faster.

    Attributes
    ----------
    min_sqnr
        Ratio of a weight to the error of rounding it, in dB, below which it keeps 8 bits.
    keep
        Whether only layers change that the target measures faster, or all whose weights keep the ratio.
    """

    min_sqnr: float = 30.0
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        bits = None if context.target is None else context.target.weight_bits
        readers: dict[ObserveOp, list[LayerOp]] = {}
        for layer in noted_layers(graph):
            assert isinstance(layer.x.op, ObserveOp)
            readers.setdefault(layer.x.op, []).append(layer)
        if bits is None or not any(note.attrs.weight_bits > bits for note in readers):
            return Result(False)
        fitting = {
            note: layers
            for note, layers in readers.items()
            if note.attrs.weight_bits > bits and all(_ratio(one, bits) >= self.min_sqnr for one in layers)
        }
        trials = [_trial(note, layers, bits) for note, layers in fitting.items()]
        verdicts = Referee(self.keep, context.latency).judge_all(trials)
        rewriter = context.rewriter(graph)
        narrowed = 0
        for (note, layers), verdict in zip(fitting.items(), verdicts, strict=True):
            if verdict.stays and rewriter.commit(_RULE, note):
                rewriter.update(note, replace(note.attrs, weight_bits=bits))
                narrowed += len(layers)
        total = sum(map(len, readers.values()))
        return Result(rewriter.changed, (f"{narrowed} of {total} weights have {bits} bits",))


def _ratio(layer: LayerOp, bits: int) -> float:
    """Of a weight to the error of rounding it to so many bits, in dB."""
    ratio, weight = Ratio(), numbers(layer.weight)
    ratio.add(weight, representable_weight(weight, largest_weight(bits)))
    return ratio.decibels


def _trial(note: ObserveOp, layers: Sequence[LayerOp], bits: int) -> Trial:
    """The layers alone, with the weights' bits as they are and with fewer."""
    step, before = step_of(note), note.attrs.weight_bits
    pairs = tuple((integer_twin(one, step, before), integer_twin(one, step, bits)) for one in layers)
    return Trial(name_of(note.x), pairs)
