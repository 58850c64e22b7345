"""``bits``: the weight of one layer is rounded to few bits, or what it reads to 8.

Weights have one scale for each output channel and no zero point, activations a scale and a zero point for the whole
tensor, from the smallest to the largest number that the data makes, as ``quantize`` has them.
Batch norms are folded first, since what is rounded is the weight of the layer that is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch

from ....ir import DType, Graph, Op, Value
from ....ir.ops import LayerOp, WeightOp
from ....passes import run_passes
from ....passes.base import PassContext
from ....passes.partial_runs import Change, Evaluate
from ....passes.quantization.placement import float_layers, refusal
from ....passes.quantization.scheme import QuantizationStep, representable_weight
from ....passes.quantization.streaming import watch
from ....passes.sensitivity import layer_names, name_of_layer
from ..variants import AxisPlan, PlannedCurve, Variant
from .registry import AxisContext, SensitivityAxis, register_axis

_ACTIVATIONS = DType.U8
_MOST = 16


@register_axis("bits")
@dataclass(frozen=True)
class BitAxis(SensitivityAxis):
    """Fewer bits in one layer's weight, and 8 bits in what it reads."""

    title = "bits of a layer's weight, or of its input"
    at: tuple[float, ...] = (8, 6, 4, 3, 2)

    def check(self, setting: float) -> None:
        if not 2 <= setting <= _MOST or setting != int(setting):
            raise ValueError(f"bits are a whole number from 2 to {_MOST}, not {setting:g}")

    def plans(self, graph: Graph, context: AxisContext) -> Iterator[AxisPlan]:
        folded = run_passes(graph, "O2")
        layers: dict[str, list[LayerOp]] = {}  # by weight
        left: dict[str, str] = {}
        for op in float_layers(folded):
            made = op.weight.op
            reason = refusal(op, ()) if isinstance(made, WeightOp) else "its weight is no constant"
            if reason or not isinstance(made, WeightOp):
                left[name_of_layer(op)] = reason
            else:
                layers.setdefault(made.attrs.id, []).append(op)
        steps = _steps(folded, [op.x for ops in layers.values() for op in ops], context)
        names = layer_names([ops[0] for ops in layers.values()])
        curves = tuple(
            self._curve(folded, name, id, ops, steps) for name, (id, ops) in zip(names, layers.items(), strict=True)
        )
        yield AxisPlan(folded, curves, left)

    def _curve(
        self, graph: Graph, name: str, id: str, ops: Sequence[LayerOp], steps: dict[Value, QuantizationStep]
    ) -> PlannedCurve:
        weight, readers = graph.weights[id], tuple(ops)
        variants = [
            Variant(f"{bits:g}", bits, f"weight at {bits:g} bits", readers, partial(_rounded, id, weight, int(bits)))
            for bits in sorted(self.at, reverse=True)
        ]
        reading: dict[Op, Evaluate] = {op: partial(_reading, op, steps[op.x]) for op in ops}
        variants.append(Variant("input 8", 8, "input at 8 bits", readers, partial(Change, ops=reading)))
        return PlannedCurve(name, "", tuple(map(name_of_layer, ops)), (), tuple(variants))


def _steps(graph: Graph, values: Sequence[Value], context: AxisContext) -> dict[Value, QuantizationStep]:
    """How integers stand for some values, by their smallest and largest numbers in the data."""
    ranges: dict[Value, tuple[float, float]] = {}

    def see(value: Value, numbers: torch.Tensor) -> None:
        low, high = (extreme.item() for extreme in torch.aminmax(numbers))
        before = ranges.get(value, (math.inf, -math.inf))
        ranges[value] = (min(before[0], low), max(before[1], high))

    watch(graph, set(values), PassContext(calibration=context.calibration, progress=context.progress), see)
    return {value: QuantizationStep.covering(low, high, _ACTIVATIONS) for value, (low, high) in ranges.items()}


def _rounded(id: str, weight: torch.Tensor, bits: int) -> Change:
    return Change(weights={id: representable_weight(weight, 2 ** (bits - 1) - 1).to(weight.dtype)})


def _reading(op: LayerOp, step: QuantizationStep, x: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
    return cast(torch.Tensor, op.evaluate(step.nearest(x), *others))
