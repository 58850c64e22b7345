"""``quantize-realize``: an integer graph of one with calibrated notes.

Before::

    %1 = observe(%x) {low=-2.0, high=3.1}             : f32[1,64,56,56]
    %2 = conv2d(%1, %w, %b)                           : f32[1,64,56,56]
    %3 = relu(%2)                                     : f32[1,64,56,56]
    %4 = observe(%3) {high=5.1}                       : f32[1,64,56,56]

After::

    %1 = quantize(%x) {scale=0.02, zero_point=100}    : u8[1,64,56,56]
    %2 = conv2d(%1, %w.i8, %b.i32) {zero_point=100}   : i32[1,64,56,56]
    %3 = dequantize(%2, %w.scale.steps)               : f32[1,64,56,56]
    %4 = quantize(%3) {scale=1.0}                     : u8[1,64,56,56]

Activations have one scale and zero point a tensor, weights one scale for each output channel, biases are i32
(`scheme`). Everything between the sums and the next ``quantize`` is ordinary elementwise arithmetic, which ``fuse``
puts into the layer's kernel; so run ``fuse`` (or ``O3``) behind this pass. Outputs of the graph are numbers as before.

The referee decides layer by layer: with ``keep=faster`` a layer that the target does not measure faster on integers
stays as it is, and what would be stored as integers for it alone too. But a layer in floating point makes its
neighbours write and read four times the bytes. So where some layers are not faster alone, the whole graph is measured
with and without them, and they follow the others if it is faster with them. The report gives milliseconds of each
layer, and the error of outputs and stored values on the first calibration batches. Fails where notes have no range yet.
Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace as replace_fields

from ...ir import Graph, Rewriter, TersorError, graph_of, weights_loaded
from ...ir.ops import LayerOp, ObserveOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import replace
from ..numeric import seeded_inputs
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..report import Verdict
from ..unfuse import take_apart
from .annotate import check_order
from .integer_graph import IntegerGraph, Stored, integer_twin, step_of
from .placement import find_notes, float_layers, name_of, refusal, stored_as_integers
from .quality import measure_quality
from .tidy import tidy

_RULE = "quantize-realize"
_WITH_OTHERS = "alone not faster, with its neighbours it is"


@register_pass(_RULE, purpose="quantize")
class QuantizeRealize(Pass):
    """Store noted values as integers, and compute on these.

    Attributes
    ----------
    keep
        Whether only layers change that the target measures faster on integers, or all that can.
    """

    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        check_order(graph, context, _RULE)
        rewriter = context.rewriter(graph)
        notes = [op for part in graph.parts for op in find_notes(part)]
        if not notes:
            return Result(False, ("no value is to be stored as integers",))
        if not weights_loaded(graph):
            raise TersorError("the graph's weights are not loaded, so no layer can be quantized")
        for op in notes:
            if not op.attrs.is_calibrated:
                raise TersorError(f"the range of {name_of(op.x)} is not known; run quantize-calibrate first")
        fused = take_apart(graph, rewriter, _RULE)
        lines = self._realize(_exact(graph, context.calibrated), graph, rewriter, context)
        return Result(rewriter.changed, lines, (Fuse(),) if fused else ())

    def _realize(self, exact: Graph, graph: Graph, rewriter: Rewriter, context: PassContext) -> tuple[str, ...]:
        referee = Referee(self.keep, context.latency, context.verdicts)
        layers, lines = _judge(graph, referee)
        if layers:
            planned, stored = _planned(graph, layers)
            named = [(name_of(op.x), op.result, one) for op, one in zip(find_notes(exact), stored, strict=True) if one]
            batches = [seeded_inputs(exact)] if context.calibration is None else context.calibration
            quality = measure_quality(exact, planned, named, batches)
            whole = referee.judge_whole(_without_notes(exact), planned, "; ".join(quality.output_notes))
            lines = (whole.note, *quality.value_notes, *lines)
            layers = layers if whole.stays else []
        _drop_notes(graph, layers, rewriter)
        if layers:
            IntegerGraph(rewriter, _RULE, layers).build()
            tidy(graph, rewriter, _RULE)
        return lines


def _exact(graph: Graph, calibrated: Graph | None) -> Graph:
    """What errors are reported against: the graph before accuracy passes, if its notes are still the same."""
    if calibrated is None:
        return graph.clone()
    exact = calibrated.clone()
    take_apart(exact, Rewriter(exact), _RULE)
    return exact if len(find_notes(exact)) == len(find_notes(graph)) else graph.clone()


def _judge(graph: Graph, referee: Referee) -> tuple[list[LayerOp], tuple[str, ...]]:
    """Layers that are to compute on integers, and the referee's lines where it has measured."""
    layers = [op for op in float_layers(graph) if isinstance(op.x.op, ObserveOp) and not refusal(op, ())]
    if referee.latency is None:
        return layers, ()
    alone = Referee(referee.keep, referee.latency)
    verdicts = {op: alone.judge(_trial(op)) for op in layers}
    slow = [op for op in layers if not verdicts[op].stays]
    together: tuple[Verdict, ...] = ()
    if 0 < len(slow) < len(layers):
        fewer, every = (_planned(graph, part)[0] for part in ([op for op in layers if op not in slow], layers))
        verdict = alone.judge(Trial(f"layers that alone are not faster ({len(slow)})", ((fewer, every),)))
        together = (verdict,)
        if verdict.stays:
            kept = {op: replace_fields(verdicts[op], stays=True, fault="", remark=_WITH_OTHERS) for op in slow}
            verdicts, slow = verdicts | kept, []
    final = (*verdicts.values(), *together)
    referee.verdicts.extend(final)
    return [op for op in layers if op not in slow], tuple(verdict.note for verdict in final)


def _trial(op: LayerOp) -> Trial:
    """A layer alone, in floating point and on integers."""
    assert isinstance(op.x.op, ObserveOp)
    return Trial(op.location or op.describe(), ((graph_of(op), integer_twin(op, step_of(op.x.op))),))


def _planned(graph: Graph, layers: Sequence[LayerOp]) -> tuple[Graph, list[Stored | None]]:
    """The integer graph as a copy, and for each note of ``graph`` the integers that it became, if it did."""
    copy, mapping = graph.clone_with_map()
    twins = [op for op in (mapping[layer.result].op for layer in layers) if isinstance(op, LayerOp)]
    rewriter = Rewriter(copy)
    _drop_notes(copy, twins, rewriter)
    integers = IntegerGraph(rewriter, _RULE, twins)
    integers.build()
    tidy(copy, rewriter, _RULE)
    return copy, [integers.stored.get(mapping[note.result]) for note in find_notes(graph)]


def _drop_notes(graph: Graph, layers: Iterable[LayerOp], rewriter: Rewriter) -> None:
    """Remove notes about values that ``layers`` do not need as integers."""
    needed = stored_as_integers(graph, layers)
    for op in find_notes(graph):
        if op.x not in needed and rewriter.commit(_RULE, op):
            replace(rewriter, op, op.x)


def _without_notes(graph: Graph) -> Graph:
    copy = graph.clone()
    _drop_notes(copy, (), Rewriter(copy))
    return copy
