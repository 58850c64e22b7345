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
with and without them, and they follow the others if it is faster with them. With ``others=bf16`` the same is asked of
16-bit numbers for what stays. Under a budget, ``min_sqnr`` or ``max_drop``, layers stay in floating point until the
outputs keep the ratio, or the model its score (`budget`). A layer that stays gets the numbers back that it had before
accuracy passes prepared it for integers. The report gives milliseconds of each layer, and the error of outputs and
stored values on the first calibration batches. Fails where notes have no range yet.
Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Annotated

import torch

from ...ir import DType, Graph, Op, Rewriter, TersorError, Value, graph_of, is_constant, weights_loaded
from ...ir.ops import BatchNormOp, LayerOp, ObserveOp, ProductOp, WeightOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..half_precision import FLOATING, leaders_of, narrow, narrow_twin
from ..matching import prune, replace, tensor
from ..numeric import seeded_inputs
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..report import Verdict
from ..unfuse import take_apart
from .annotate import check_order
from .budget import LayerVariant, NoiseBudget, choose_variants
from .integer_graph import IntegerGraph, Stored, integer_twin, product_twin, step_of
from .placement import (
    find_notes,
    float_layers,
    in_order,
    name_of,
    noted_layers,
    noted_products,
    stored_as_integers,
)
from .quality import measure_quality
from .scheme import QuantizationStep
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
    min_sqnr
        Signal-to-noise ratio in dB that each output keeps: layers that cost too much of it stay in floating point.
    max_drop
        By how much the user's score of the model may fall: likewise.
    others
        Type of the layers that do not compute on integers: ``f32``, ``bf16`` or ``f16``.
    """

    keep: Keep = Keep.FASTER
    min_sqnr: float | None = None
    max_drop: float | None = None
    others: Annotated[DType, FLOATING] = DType.F32

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        _ = self.budget  # raises what is wrong with it

    @property
    def budget(self) -> NoiseBudget:
        """What the layers may cost."""
        return NoiseBudget(self.min_sqnr, self.max_drop)

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
        lines = self._realize(_exact(graph, context.calibrated), graph, rewriter, context)
        return Result(rewriter.changed, lines, (Fuse(),) if fused else ())

    def _realize(self, exact: Graph, graph: Graph, rewriter: Rewriter, context: PassContext) -> tuple[str, ...]:
        referee = Referee(self.keep, context.latency, context.verdicts)
        draft = _Draft(exact, graph, self.others)
        batches = [seeded_inputs(exact)] if context.calibration is None else context.calibration
        verdicts, lines = _judge(draft, referee)
        halved, more = _judge_narrow(draft, referee)
        plan, lines = PrecisionPlan(tuple(verdicts), tuple(op for op in halved if op not in verdicts)), (*lines, *more)
        if plan and self.budget:
            variants = [
                *((op, PrecisionPlan((op,)), "on integers", _gain(op, one, 1.0)) for op, one in verdicts.items()),
                *(
                    (op, PrecisionPlan((), (op,)), f"in {self.others.value}", _gain(op, one, 0.5))
                    for op, one in halved.items()
                ),
            ]
            numbers = {op: number for number, op in enumerate(dict.fromkeys(op for op, *_ in variants))}
            choice = choose_variants(
                _without_notes(exact),
                [LayerVariant(numbers[op], name_of(op.result), kind, gain) for op, _, kind, gain in variants],
                lambda chosen: draft.planned(PrecisionPlan.union(variants[index][1] for index in chosen))[0],
                batches,
                self.budget,
                context.score,
                context.progress,
            )
            plan, lines = PrecisionPlan.union(variants[index][1] for index in choice.chosen), (*choice.notes, *lines)
        if plan:
            planned, stored = draft.planned(plan)
            named = [(name_of(op.x), op.result, one) for op, one in zip(find_notes(exact), stored, strict=True) if one]
            quality = measure_quality(exact, planned, named, batches)
            whole = referee.judge_whole(_without_notes(exact), planned, "; ".join(quality.output_notes))
            lines = (whole.note, quality.worst_note, *quality.value_notes, *lines)
            plan = plan if whole.stays else PrecisionPlan()
        draft.apply(plan, graph, rewriter)
        return lines


def _exact(graph: Graph, calibrated: Graph | None) -> Graph:
    """What errors are reported against: the graph before accuracy passes, if its notes are still the same."""
    if calibrated is None:
        return graph.clone()
    exact = calibrated.clone()
    take_apart(exact, Rewriter(exact), _RULE)
    same = all(len(find(exact)) == len(find(graph)) for find in (find_notes, float_layers, _norms))
    return exact if same else graph.clone()


def _norms(graph: Graph) -> list[Op]:
    """Batch normalisations: layers that they are folded into have other weights than before."""
    return [op for op in graph.ops if isinstance(op, BatchNormOp)]


@dataclass(frozen=True)
class PrecisionPlan:
    """Layers and products to compute on integers, and ops to compute in a narrow floating-point type."""

    integers: tuple[Op, ...] = ()
    narrow: tuple[Op, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.integers or self.narrow)

    @staticmethod
    def union(plans: Iterable[PrecisionPlan]) -> PrecisionPlan:
        """All of several plans together."""
        parts = list(plans)
        return PrecisionPlan(
            tuple(op for one in parts for op in one.integers), tuple(op for one in parts for op in one.narrow)
        )


@dataclass(frozen=True)
class _Draft:
    """What plans make of a graph with notes.

    Attributes
    ----------
    exact
        The graph before accuracy passes.
    graph
        The graph.
    others
        The narrow type.
    """

    exact: Graph
    graph: Graph
    others: DType

    def planned(self, plan: PrecisionPlan) -> tuple[Graph, list[Stored | None]]:
        """The graph after a plan, as a copy, and for each note the integers that it became, if it did."""
        copy, mapping = self.graph.clone_with_map()
        twins = [tuple(filter(None, (mapping[op.result].op for op in ops))) for ops in (plan.integers, plan.narrow)]
        stored = self.apply(PrecisionPlan(*twins), copy, Rewriter(copy))
        return copy, [stored.get(mapping[note.result]) for note in find_notes(self.graph)]

    def apply(self, plan: PrecisionPlan, graph: Graph, rewriter: Rewriter) -> dict[Value, Stored]:
        """Rewrite the graph, or a copy of it; returns what is stored as integers."""
        _leave_in_floating_point(self.exact, graph, plan.integers, rewriter)
        stored: dict[Value, Stored] = {}
        if plan.integers:
            integers = IntegerGraph(rewriter, _RULE, plan.integers)
            integers.build()
            stored = integers.stored
        if plan.narrow:
            narrow(rewriter, _RULE, self.others, plan.narrow)
        if plan:
            tidy(graph, rewriter, _RULE)
        return stored


def _judge(draft: _Draft, referee: Referee) -> tuple[dict[Op, Verdict | None], tuple[str, ...]]:
    """Layers and products that are to compute on integers, and the referee's lines where it has measured."""
    layers = in_order(draft.graph, noted_layers(draft.graph), noted_products(draft.graph))
    if referee.latency is None:
        return dict.fromkeys(layers), ()
    alone = Referee(referee.keep, referee.latency)
    verdicts = dict(zip(layers, alone.judge_all([_trial(op) for op in layers]), strict=True))
    slow = [op for op in layers if not verdicts[op].stays]
    together: tuple[Verdict, ...] = ()
    if 0 < len(slow) < len(layers):
        parts = tuple(op for op in layers if op not in slow), tuple(layers)
        fewer, every = (draft.planned(PrecisionPlan(part))[0] for part in parts)
        verdict = alone.judge(Trial(f"layers that alone are not faster ({len(slow)})", ((fewer, every),)))
        together = (verdict,)
        if verdict.stays:
            kept = {op: replace_fields(verdicts[op], stays=True, fault="", remark=_WITH_OTHERS) for op in slow}
            verdicts, slow = verdicts | kept, []
    final = (*verdicts.values(), *together)
    referee.verdicts.extend(final)
    return {op: verdicts[op] for op in layers if op not in slow}, tuple(verdict.note for verdict in final)


def _judge_narrow(draft: _Draft, referee: Referee) -> tuple[dict[Op, Verdict | None], tuple[str, ...]]:
    """Ops that are to compute in the narrow type where they do not on integers, and the referee's lines."""
    if draft.others is DType.F32:
        return {}, ()
    ops = leaders_of(draft.graph, draft.others)
    if referee.latency is None:
        return dict.fromkeys(ops), ()
    trials = [
        Trial(f"{name_of(op.result)} in {draft.others.value}", ((graph_of(op), narrow_twin(op, draft.others)),))
        for op in ops
    ]
    verdicts = referee.judge_all(trials)
    kept: dict[Op, Verdict | None] = {op: one for op, one in zip(ops, verdicts, strict=True) if one.stays}
    return kept, tuple(verdict.note for verdict in verdicts)


def _gain(op: Op, verdict: Verdict | None, share: float) -> float:
    """What a layer saves: seconds where they were measured, else a share of its multiply-adds."""
    if verdict is None or verdict.times is None:
        return share * op.macs()
    return max(0.0, verdict.times.before - verdict.times.after)


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


def _leave_in_floating_point(exact: Graph, graph: Graph, layers: Sequence[Op], rewriter: Rewriter) -> None:
    """Take back what only layers on integers need: notes, and the numbers that accuracy passes gave other layers."""
    pairs = list(zip(float_layers(exact), float_layers(graph), strict=True))
    needed = stored_as_integers(graph, layers)
    for note in find_notes(graph):
        if note.x not in needed and rewriter.commit(_RULE, note):
            replace(rewriter, note, note.x)
    for before, op in pairs:
        if op not in layers:
            for index in (1, 2):  # weight and bias
                _restore(before.operands[index], op, index, rewriter)


def _restore(before: Value | None, op: LayerOp, index: int, rewriter: Rewriter) -> None:
    old, now = tensor(before), tensor(op.operands[index])
    same = old is now if old is None or now is None else torch.equal(old, now)
    computed = any(value is not None and not is_constant(value) for value in (before, op.operands[index]))
    if same or computed or not rewriter.commit(_RULE, op):
        return
    made = op.operands[index]
    rewriter.set_operand(op, index, None if before is None or old is None else _weight(before, old, rewriter))
    if made is not None:
        prune(rewriter, (made,))


def _weight(before: Value, numbers: torch.Tensor, rewriter: Rewriter) -> Value:
    """A weight of another graph, under its own id where this one has it still."""
    stored = rewriter.graph.weights
    id = before.op.attrs.id if isinstance(before.op, WeightOp) else _RULE
    if id in stored and before.op is not None and torch.equal(stored[id], numbers):
        return rewriter.create(WeightOp, (), before.op.attrs).result
    return rewriter.weight(numbers, id)


def _without_notes(graph: Graph) -> Graph:
    copy = graph.clone()
    _leave_in_floating_point(graph, copy, (), Rewriter(copy))
    return copy
