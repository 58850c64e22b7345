"""``activation-tables``: activations between integers as tables of 256 integers.

Before::

    %2 = dequantize(%1, 0.02) {zero_point=100}        : f32[1,64,56,56]
    %3 = silu(%2)                                     : f32[1,64,56,56]
    %4 = quantize(%3) {scale=0.03, zero_point=9}      : u8[1,64,56,56]

After::

    %4 = lookup(%1, %table)                           : u8[1,64,56,56]      table: u8[256]

Whatever stands between one value of 8-bit integers and a ``quantize`` is a function of 256 integers, if it reads single
numbers besides. The table holds what the interpreter computes, so nothing is lost. Bounds, sums and products alone
stay.

In front of an activation behind a layer there are no integers, but sums. If these are rounded as well, the table saves
the activation's arithmetic in the layer's kernel::

    %2 = dequantize(%1, %scales)                      : f32[1,64,56,56]
    %3 = quantize(%2) {scale=0.02, zero_point=100}    : u8[1,64,56,56]
    %4 = lookup(%3, %table)                           : u8[1,64,56,56]

Numbers are rounded twice then, which costs a value up to ``max_loss`` dB of its signal-to-noise ratio on calibration
data, else it is left as it is. The first rounding covers the numbers that calibration data makes there, less the ends
where the results do not differ by half a step any more: the far negative side of GELU and SiLU.

The referee decides each table by the time of its kernel. Hard-swish, bounds and other functions of a few instructions
cost no more than the look-up, so that they are none of the second kind. Without calibration data nothing is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import Graph, Op, Rewriter, TersorError, Value
from ...ir.ops import (
    DivOp,
    FloatUnaryOp,
    HardSigmoidOp,
    HardSwishOp,
    LeakyReluOp,
    LookupOp,
    PowOp,
    QuantizeOp,
    RelayoutOp,
)
from ...ir.ops.integers import integer_range
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import part_name
from ..matching import replace as replace_op
from ..referee import Keep, Referee, Trial
from ..registry import register_pass
from ..unfuse import take_apart
from .byte_functions import ByteFunction, find_function, kernel_of
from .quality import Ratio
from .sample import Sample
from .scheme import QuantizationStep
from .streaming import watch
from .tidy import tidy

_RULE = "activation-tables"
_BATCHES = 8  # of the calibration data, that are looked at
_FUNCTIONS = (FloatUnaryOp, PowOp, DivOp)
_CHEAP = (HardSigmoidOp, HardSwishOp, LeakyReluOp)
MOST_LOSS = 6.0  # dB: one bit
_PLACES = 2048  # at which a function is looked at to find the ends that do not matter


@register_pass(_RULE, purpose="quantize")
class ActivationTables(Pass):
    """Look activations up that stand between 8-bit integers.

    Attributes
    ----------
    max_loss
        Decibels of its signal-to-noise ratio that a value may lose by being rounded before the activation too; with 0,
        only what is a function of integers already becomes a table.
    keep
        Whether only tables stay that the target measures faster, or all.
    """

    max_loss: float = MOST_LOSS
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        if not self.max_loss >= 0:
            raise ValueError(f"max_loss must be 0 dB or more, not {self.max_loss}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(isinstance(op, QuantizeOp) for part in graph.parts for op in part.ops):
            return Result(False)
        if context.target is not None and not context.target.integer_kernels:
            return Result(False, (f"{context.target.name} has no kernels for 8-bit integers",))
        if any(isinstance(op, RelayoutOp) for op in graph.ops):
            raise TersorError(f"layouts are chosen already; run {_RULE} before layout")
        rewriter = context.rewriter(graph)
        fused = take_apart(graph, rewriter, _RULE)
        position = {op: index for index, op in enumerate(graph.ops)}
        tables = self._tables(graph, position, rewriter, context)
        verdicts = Referee(self.keep, context.latency, context.verdicts).judge_all(
            [_trial(table, position) for table in tables]
        )
        kept = [table for table, verdict in zip(tables, verdicts, strict=True) if verdict.stays]
        for table in kept:
            _look_up(table, rewriter)
        if kept:
            tidy(graph, rewriter, _RULE)
        notes = tuple(verdict.note for verdict in verdicts)
        count = (f"{len(kept)} of {len(tables)} activations are tables",) if tables else ()
        return Result(rewriter.changed, (*count, *notes), (Fuse(),) if fused else ())

    def _tables(
        self, graph: Graph, position: Mapping[Op, int], rewriter: Rewriter, context: PassContext
    ) -> list[_Table]:
        """What could be a table, in execution order."""
        found = (find_function(op, position) for op in graph.ops if isinstance(op, QuantizeOp))
        functions = [one for one in found if one is not None and _has_function(one)]
        costly = [one for one in functions if not one.is_of_integers and _is_costly(one)]
        samples = _samples(graph, costly, context) if self.max_loss else {}
        tables = []
        for function in functions:
            if function.is_of_integers:
                tables.append(_Table(function))
            elif samples and function in costly:
                step, before, after = _first_rounding(function, samples[function.value])
                if after >= before - self.max_loss:
                    tables.append(_Table(function, step, f"SQNR {before:.1f} -> {after:.1f} dB"))
                else:
                    reason = f"rounding its operand leaves {after:.1f} of {before:.1f} dB"
                    rewriter.refuse(_RULE, function.ops[0], reason)
        return tables


@dataclass(frozen=True)
class _Table:
    """A function to look up; with a step, its value is rounded to integers first."""

    function: ByteFunction
    step: QuantizationStep | None = None
    remark: str = ""


def _has_function(function: ByteFunction) -> bool:
    """Whether it is more than bounds, sums and products."""
    return any(isinstance(op, _FUNCTIONS) for op in function.ops)


def _is_costly(function: ByteFunction) -> bool:
    """Whether it takes more instructions than a look-up."""
    return any(isinstance(op, _FUNCTIONS) and not isinstance(op, _CHEAP) for op in function.ops)


def _samples(graph: Graph, functions: Sequence[ByteFunction], context: PassContext) -> dict[Value, torch.Tensor]:
    """Numbers of the values that functions are of, flat; none without calibration data."""
    if context.calibration is None or not functions:
        return {}
    samples = {function.value: Sample() for function in functions}
    few = replace(context, calibration=list(itertools.islice(context.calibration, _BATCHES)))
    watch(graph, samples.keys(), few, lambda value, numbers: samples[value].add(numbers))
    return {value: torch.cat([one.flatten() for one in sample.tensors]) for value, sample in samples.items()}


def _first_rounding(function: ByteFunction, numbers: torch.Tensor) -> tuple[QuantizationStep, float, float]:
    """The best step for the value, and the ratio in dB of the result without it and with it."""
    attrs = function.quantize.attrs
    result = QuantizationStep(attrs.scale, attrs.zero_point, attrs.dtype)
    exact, integers = function.evaluate(numbers)
    once = Ratio()
    once.add(exact, _numbers(integers, result))
    best: tuple[float, QuantizationStep] | None = None
    whole = (numbers.min().item(), numbers.max().item())
    for low, high in dict.fromkeys((whole, _without_ends(function, result, *whole))):
        step = QuantizationStep.covering(low, high, attrs.dtype)
        twice = Ratio()
        twice.add(exact, _numbers(function.evaluate(step.nearest(numbers))[1], result))
        if best is None or twice.decibels > best[0]:
            best = twice.decibels, step
    assert best is not None
    return best[1], once.decibels, best[0]


def _numbers(integers: torch.Tensor, step: QuantizationStep) -> torch.Tensor:
    return (integers.double() - step.zero_point) * step.scale


def _without_ends(function: ByteFunction, result: QuantizationStep, low: float, high: float) -> tuple[float, float]:
    """The range without what has results at either end that are less than half a step apart."""
    limits = ((limit - result.zero_point) * result.scale for limit in integer_range(result.dtype))
    places = torch.linspace(low, high, _PLACES)
    made = function.evaluate(places)[0].clamp(*limits)
    first, last = (_flat_places(numbers, result.scale / 2) for numbers in (made, made.flip(0)))
    last = _PLACES - 1 - last
    return (places[first].item(), places[last].item()) if first < last else (low, high)


def _flat_places(numbers: torch.Tensor, most: float) -> int:
    """The last place before which no number differs by more than ``most`` from the one there."""
    spread = torch.maximum(numbers.cummax(0).values - numbers, numbers - numbers.cummin(0).values)
    return int((spread <= most).nonzero().max())


def _trial(table: _Table, position: Mapping[Op, int]) -> Trial:
    before, function = kernel_of(table.function, position)
    after, mapping = before.clone_with_map()
    rewriter = Rewriter(after)
    _look_up(replace(table, function=function.mapped(mapping)), rewriter)
    tidy(after, rewriter, _RULE)
    return Trial(f"{table.function.ops[0].describe()} as a table", ((before, after),), remark=table.remark)


def _look_up(table: _Table, rewriter: Rewriter) -> None:
    function, step = table.function, table.step
    if not rewriter.commit(_RULE, function.quantize):
        return
    integers = function.value
    if step is None:
        entries = function.table()
    else:
        attrs = QuantizeOp.attrs_type(scale=step.scale, zero_point=step.zero_point, dtype=step.dtype)
        integers = rewriter.create(QuantizeOp, (integers,), attrs).result
        entries = function.evaluate(_all_numbers(step))[1]
    weight = rewriter.weight(entries, part_name(function.quantize.inputs[0], "table"))
    replace_op(rewriter, function.quantize, rewriter.create(LookupOp, (integers, weight)).result)


def _all_numbers(step: QuantizationStep) -> torch.Tensor:
    """What the integers stand for, in ascending order, rounded as `DequantizeOp` rounds."""
    low, high = integer_range(step.dtype)
    return torch.arange(low - step.zero_point, high - step.zero_point + 1).float() * step.scale
