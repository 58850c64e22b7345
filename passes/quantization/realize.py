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

A product of computed operands, such as attention, is one of integers where all its factors are stored as such. The
referee decides layer by layer, and product by product: with ``keep=faster`` what the target does not measure faster on
integers stays as it is, and what would be stored as integers for it alone too. But a layer in floating point makes its
neighbours write and read four times the bytes. So where some layers are not faster alone, the whole graph is measured
with and without them, and they follow the others if it is faster with them. With ``others=[bf16,int4]`` the referee is
asked about these ways (`ways`) too, and what does not compute on integers takes the one that saves the most. Under a
budget, ``min_sqnr`` or ``max_drop``, layers stay in floating point until the outputs keep the ratio, or the model its
score (`budget`). A layer that stays gets the numbers back that it had before accuracy passes prepared it for integers
(`draft`). The report gives milliseconds of each layer, its precision (`layer_report`), and the error of outputs and
stored values on the first calibration batches. Fails where notes have no range yet.
Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Annotated

import torch

from ...ir import Graph, Op, Rewriter, TersorError, Value, graph_of, weights_loaded
from ...ir.ops import BatchNormOp, LayerOp, ObserveOp, ProductOp
from ..base import Calibrated, Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..numeric import seeded_inputs
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..report import LayerPrecision, Verdict
from ..unfuse import take_apart
from .annotate import check_order
from .budget import LayerVariant, NoiseBudget, choose_variants
from .draft import INTEGERS, Draft, Plan
from .integer_graph import integer_twin, product_twin, step_of
from .layer_report import describe_layers
from .placement import find_notes, float_layers, in_order, name_of, noted_layers, noted_products
from .quality import StoredRatio, measure_quality
from .scheme import QuantizationStep
from .ways import WAYS

Choice = tuple[Op, str]  # a layer or a product, and the name of a way
_RULE = "quantize-realize"
_WITH_OTHERS = "alone not faster, with its neighbours it is"


@register_pass(_RULE, purpose="quantize")
class QuantizeRealize(Pass):
    """Store noted values as integers, and compute on these.

    Attributes
    ----------
    keep
        Whether only layers change that the target measures faster on integers, or all that can.
    min_sqnr
        Signal-to-noise ratio in dB that each output keeps: layers that cost too much of it stay in floating point.
    max_drop
        By how much the user's score of the model may fall: likewise.
    others
        Other ways to compute layers that do not compute on integers, for example ``bf16`` or ``[bf16,int4]`` (`ways`).
    """

    keep: Keep = Keep.FASTER
    min_sqnr: float | None = None
    max_drop: float | None = None
    others: Annotated[str | tuple[str, ...], WAYS] = ()

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        _ = self.budget  # raises what is wrong with it
        for name in self.other_ways:
            WAYS.find(name)

    @property
    def budget(self) -> NoiseBudget:
        """What the layers may cost."""
        return NoiseBudget(self.min_sqnr, self.max_drop)

    @property
    def other_ways(self) -> tuple[str, ...]:
        """The names in ``others``, each once."""
        return tuple(dict.fromkeys((self.others,) if isinstance(self.others, str) else self.others))

    @property
    def needs_score(self) -> bool:
        return self.max_drop is not None

    def run(self, graph: Graph, context: PassContext) -> Result:
        check_order(graph, context, _RULE, "fold-batchnorm")
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
        lines, layers = self._realize(_exact(graph, context.calibrated), graph, rewriter, context)
        return Result(rewriter.changed, lines, (Fuse(),) if fused else (), layers=layers)

    def _realize(
        self, exact: Graph, graph: Graph, rewriter: Rewriter, context: PassContext
    ) -> tuple[tuple[str, ...], tuple[LayerPrecision, ...]]:
        """Choose and rewrite; returns lines for the report, and what became of each layer."""
        referee = Referee(self.keep, context.latency, context.verdicts)
        draft = Draft(_RULE, exact, graph, {name: WAYS.find(name)() for name in self.other_ways})
        batches = [seeded_inputs(exact)] if context.calibration is None else context.calibration
        verdicts, lines = _judge(draft, referee)
        others, more = _judge_others(draft, referee)
        verdicts, lines = verdicts | others, (*lines, *more)
        plan = _largest_gains(draft, verdicts)
        draft.prepare(verdicts if self.budget else plan.items(), context)
        if plan and self.budget:
            plan, told = self._within_budget(draft, verdicts, batches, context)
            lines = (*told, *lines)
        stored: dict[Op, StoredRatio] = {}
        if plan:
            planned, integers = draft.planned(plan)
            notes = zip(find_notes(exact), find_notes(graph), integers, strict=True)
            kept = [(note, before, one) for before, note, one in notes if one is not None]
            named = [(name_of(before.x), before.result, one) for _, before, one in kept]
            quality = measure_quality(exact, planned, named, batches)
            whole = referee.judge_whole(draft.without_notes(), planned, "; ".join(quality.output_notes))
            lines = (whole.note, quality.worst_note, *quality.value_notes, *lines)
            ratios = (ratio for _, ratio in quality.values)
            stored = dict(zip((note for note, *_ in kept), ratios, strict=True)) if whole.stays else {}
            plan = plan if whole.stays else {}
        layers = describe_layers(draft, plan, stored, _calibrators(exact, context.calibrated), verdicts)
        draft.apply(plan, rewriter)
        return lines, layers

    def _within_budget(
        self,
        draft: Draft,
        verdicts: Mapping[Choice, Verdict | None],
        batches: Iterable[Sequence[torch.Tensor]],
        context: PassContext,
    ) -> tuple[Plan, tuple[str, ...]]:
        """The plan that saves the most within the budget, and lines for the report."""
        choices = list(verdicts)
        numbers = {op: number for number, op in enumerate(dict.fromkeys(op for op, _ in choices))}
        choice = choose_variants(
            draft.without_notes(),
            [
                LayerVariant(numbers[op], name_of(op.result), _label(draft, way), *_gain(draft, (op, way), verdict))
                for (op, way), verdict in verdicts.items()
            ],
            lambda chosen: draft.planned(dict(choices[index] for index in chosen))[0],
            batches,
            self.budget,
            context.score,
            context.progress,
        )
        return dict(choices[index] for index in choice.chosen), choice.notes


def _exact(graph: Graph, calibrated: Calibrated | None) -> Graph:
    """What errors are reported against: the graph before accuracy passes, if its notes are still the same."""
    if calibrated is None:
        return graph.clone()
    exact = calibrated.graph.clone()
    take_apart(exact, Rewriter(exact), _RULE)
    same = all(len(find(exact)) == len(find(graph)) for find in (find_notes, float_layers, _norms))
    return exact if same else graph.clone()


def _norms(graph: Graph) -> list[Op]:
    """Batch normalisations: layers that they are folded into have other weights than before."""
    return [op for op in graph.ops if isinstance(op, BatchNormOp)]


def _calibrators(exact: Graph, calibrated: Calibrated | None) -> tuple[str, ...]:
    """What found the range of each note; empty where that is not known."""
    known = () if calibrated is None else calibrated.calibrators
    return known if len(known) == len(find_notes(exact)) else ()


def _judge(draft: Draft, referee: Referee) -> tuple[dict[Choice, Verdict | None], tuple[str, ...]]:
    """Layers and products that are to compute on integers, and the referee's lines where it has measured."""
    layers = in_order(draft.graph, noted_layers(draft.graph), noted_products(draft.graph))
    if referee.latency is None:
        return {(op, INTEGERS): None for op in layers}, ()
    alone = Referee(referee.keep, referee.latency)
    verdicts = dict(zip(layers, alone.judge_all([_trial(op) for op in layers]), strict=True))
    slow = [op for op in layers if not verdicts[op].stays]
    together: tuple[Verdict, ...] = ()
    if 0 < len(slow) < len(layers):
        parts = [op for op in layers if op not in slow], layers
        fewer, every = (draft.planned(dict.fromkeys(part, INTEGERS))[0] for part in parts)
        verdict = alone.judge(Trial(f"layers that alone are not faster ({len(slow)})", ((fewer, every),)))
        together = (verdict,)
        if verdict.stays:
            kept = {op: replace_fields(verdicts[op], stays=True, fault="", remark=_WITH_OTHERS) for op in slow}
            verdicts, slow = verdicts | kept, []
    final = (*verdicts.values(), *together)
    referee.verdicts.extend(final)
    return {(op, INTEGERS): verdicts[op] for op in layers if op not in slow}, tuple(verdict.note for verdict in final)


def _judge_others(draft: Draft, referee: Referee) -> tuple[dict[Choice, Verdict | None], tuple[str, ...]]:
    """Ops that are to be computed in one of the other ways where they do not on integers, and the referee's lines."""
    choices = [(op, name) for name, way in draft.ways.items() for op in way.layers(draft.graph)]
    if referee.latency is None:
        return dict.fromkeys(choices), ()
    trials = [
        Trial(f"{name_of(op.result)} {draft.ways[name].label}", (draft.ways[name].pair(op),)) for op, name in choices
    ]
    verdicts = referee.judge_all(trials)
    kept: dict[Choice, Verdict | None] = {
        choice: one for choice, one in zip(choices, verdicts, strict=True) if one.stays
    }
    return kept, tuple(verdict.note for verdict in verdicts)


def _largest_gains(draft: Draft, verdicts: Mapping[Choice, Verdict | None]) -> Plan:
    """Integers for each layer that may compute on these; for the others the way that saves the most."""
    plan = {op: way for op, way in verdicts if way == INTEGERS}
    gains: dict[Op, float] = {}
    for (op, way), verdict in verdicts.items():
        gain, _ = _gain(draft, (op, way), verdict)
        if plan.get(op) != INTEGERS and gain > gains.get(op, -1.0):
            plan[op], gains[op] = way, gain
    return plan


def _label(draft: Draft, way: str) -> str:
    return "on integers" if way == INTEGERS else draft.ways[way].label


def _gain(draft: Draft, choice: Choice, verdict: Verdict | None) -> tuple[float, str]:
    """What a layer saves, and how to say that: seconds where they were measured, else a share of its multiply-adds."""
    op, way = choice
    if verdict is None or verdict.times is None:
        return op.macs() * (1.0 if way == INTEGERS else draft.ways[way].share), ""
    saved = max(0.0, verdict.times.before - verdict.times.after)
    return saved, f"{saved * 1e3:.3g} ms"


def _trial(op: Op) -> Trial:
    """A layer or a product alone, in floating point and on integers."""
    if isinstance(op, ProductOp):
        twin = product_twin(op, [_step_of(value) for value in op.factors])
    else:
        assert isinstance(op, LayerOp)
        twin = integer_twin(op, _step_of(op.x))
    return Trial(name_of(op.result), ((graph_of(op), twin),))


def _step_of(value: Value) -> QuantizationStep:
    assert isinstance(value.op, ObserveOp)
    return step_of(value.op)
