"""What the report says of each layer: its precision, how well what it reads is stored, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...ir import Op, Value, changes_of
from ...ir.ops import LayerOp, ObserveOp, ProductOp, WeightOp
from ..registry import pass_names
from ..report import LayerPrecision, Verdict
from .draft import INTEGERS, Draft, Plan
from .integer_graph import step_of
from .placement import find_notes, float_layers, float_products, in_order, name_of, weight_bits
from .quality import POOR, StoredRatio

_FLOAT_BITS = 32
_INTEGER_BITS = 8
_MANY = 0.001  # share of saturated numbers that is worth a word
_OWN = 2.0  # noise that is at most so many times that of rounding the value alone comes from there


def describe_layers(
    draft: Draft,
    plan: Plan,
    stored: Mapping[Op, StoredRatio],
    calibrators: Sequence[str],
    verdicts: Mapping[tuple[Op, str], Verdict | None],
) -> tuple[LayerPrecision, ...]:
    """A line for each layer and product, in execution order.

    Parameters
    ----------
    plan
        How they are computed.
    stored
        Ratios of the notes that became integers, notes of the draft's graph.
    calibrators
        Of all its notes, in execution order; none where that is not known.
    verdicts
        What was measured, by layer and way.
    """
    graph = draft.graph
    found: dict[Op, str] = dict(zip(find_notes(graph), calibrators, strict=True)) if calibrators else {}
    twins = draft.exact_twins(graph)
    ops = in_order(graph, float_layers(graph), float_products(graph), tuple(plan))
    return tuple(_describe(op, draft, plan.get(op, ""), stored, found, verdicts, twins.get(op, op)) for op in ops)


def _describe(
    op: Op,
    draft: Draft,
    way: str,
    stored: Mapping[Op, StoredRatio],
    calibrators: Mapping[Op, str],
    verdicts: Mapping[tuple[Op, str], Verdict | None],
    exact: Op,
) -> LayerPrecision:
    verdict = verdicts.get((op, way))
    note = min(_notes(op, stored), key=lambda one: stored[one].decibels, default=None)
    ratio = None if note is None else stored[note]
    step = None if note is None else step_of(note)
    computes, weight, activation = _precision(op, draft, way, ratio is not None)
    accuracy = _accuracy(op if way == INTEGERS else exact)
    calibrator = "" if note is None else calibrators.get(note, "")
    return LayerPrecision(
        name_of(op.result),
        computes,
        weight if isinstance(op, LayerOp) else None,
        activation,
        None if step is None else step.scale,
        None if ratio is None else ratio.saturated,
        None if ratio is None or math.isinf(ratio.decibels) else ratio.decibels,
        None if verdict is None else verdict.times,
        calibrator,
        accuracy,
        "" if ratio is None else _advice(ratio, calibrator, accuracy),
    )


def _precision(op: Op, draft: Draft, way: str, is_stored: bool) -> tuple[str, int, int]:
    """On which numbers a layer computes, and the bits of its weight and of what it reads."""
    if way == INTEGERS:
        return "int8", weight_bits(op) if isinstance(op, LayerOp) else _INTEGER_BITS, _INTEGER_BITS
    if way:
        chosen = draft.ways[way]
        return chosen.computes, chosen.weight_bits, chosen.activation_bits
    return "float32", _FLOAT_BITS, _INTEGER_BITS if is_stored else _FLOAT_BITS


def _notes(op: Op, stored: Mapping[Op, StoredRatio]) -> list[Op]:
    """The notes about what an op reads that became integers."""
    operands: Sequence[Value] = op.factors if isinstance(op, ProductOp) else op.inputs[:1]
    return [value.op for value in operands if isinstance(value.op, ObserveOp) and value.op in stored]


def _accuracy(op: Op) -> tuple[str, ...]:
    """Passes whose names stand in the ids of a layer's weight and bias."""
    ids = [value.op.attrs.id for value in op.inputs[1:] if isinstance(value.op, WeightOp)]
    changes = dict.fromkeys(change for id in ids for change in changes_of(id))
    return tuple(one for one in changes if one in pass_names())


def _advice(ratio: StoredRatio, calibrator: str, accuracy: Sequence[str]) -> str:
    """What to try for a value, from where its noise comes."""
    if ratio.decibels >= POOR:
        return ""
    if ratio.noise > _OWN * ratio.rounding:
        rounded = {"gptq", "adaround"}.intersection(accuracy)
        remedy = "min_sqnr=... or max_drop=..." if rounded else "accuracy=[equalize-concat,smooth-quant,gptq]"
        return f"its noise comes from layers before it: {remedy}"
    if ratio.saturated > _MANY and calibrator != "minmax":
        return f"{ratio.saturated:.1%} of the numbers are beyond its range: method=minmax"
    if not calibrator.startswith("auto"):
        return "its range is too wide for most of its numbers: method=auto"
    return "its numbers differ too much for 8 bits: skip=[...], smooth-quant or cross-layer-equalization"
