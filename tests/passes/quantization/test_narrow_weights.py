"""``narrow-weights``: weights of 7 bits where they are faster, and lose little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from tersor.ir import Graph
from tersor.ir.ops import Conv2dOp, ObserveOp, ReluOp, WeightOp
from tersor.passes import PassOutcome
from tersor.targets.machines.catalog import resolve_cpu

from .networks import builder, decibels, quantized

NOTED = "quantize-annotate,quantize-calibrate"
NARROWED = f"{NOTED},narrow-weights"
AVX2, VNNI = resolve_cpu("x86:avx2"), resolve_cpu("x86:cascadelake")


def two_layers() -> Graph:
    b = builder()
    first = b.op(ReluOp, b.conv(b.graph.inputs[0], 8))
    return b.done(b.conv(first, 6))


def shared_operand() -> Graph:
    b = builder()
    (x,) = b.graph.inputs
    return b.done(b.conv(x, 8), b.conv(x, 6))


@dataclass(frozen=True)
class Timed:
    """A comparison."""

    before: float
    after: float
    noise: float = 0.02


@dataclass
class StubLatency:
    """The second of two graphs takes ``ratio`` times as long; notes the largest weights of both."""

    ratio: float
    slow: int | None = None  # output channels of a layer for which it is twice as long instead
    seen: list[tuple[int, int]] = field(default_factory=list)

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        list(questions)

    def compare(self, before: Graph, after: Graph) -> Timed:
        largest = [max(int(one.abs().max()) for one in graph.weights.values() if one.dtype is torch.int8)
                   for graph in (before, after)]  # fmt: skip
        self.seen.append((largest[0], largest[1]))
        is_slow = after.outputs[0].shape[1] == self.slow
        return Timed(1.0, 2.0 if is_slow else self.ratio)


def bits(outcome: PassOutcome) -> list[int]:
    return [op.attrs.weight_bits for op in outcome.graph.ops if isinstance(op, ObserveOp)]


def test_both_weights_get_seven_bits():
    latency = StubLatency(0.5)
    outcome = quantized(two_layers(), NARROWED, target=AVX2, latency=latency)
    assert bits(outcome) == [7, 7]
    assert latency.seen == [(127, 63), (127, 63)]
    assert outcome.report.records[-1].notes == ("2 of 2 weights have 7 bits",)


def test_the_integers_have_seven_bits():
    before = two_layers()
    after = quantized(before, f"{NARROWED},bias-correction,quantize-realize", target=AVX2).graph
    weights = [op.weight.op for op in after.ops if isinstance(op, Conv2dOp)]
    assert all(isinstance(op, WeightOp) for op in weights)
    largest = [int(after.weights[op.attrs.id].abs().max()) for op in weights]
    assert largest == [63, 63]
    plain = quantized(before, f"{NOTED},bias-correction,quantize-realize", target=AVX2).graph
    assert decibels(before, plain) - 6 < decibels(before, after) < decibels(before, plain)


def test_only_what_is_measured_faster():
    outcome = quantized(two_layers(), NARROWED, target=AVX2, latency=StubLatency(0.5, slow=6))
    assert bits(outcome) == [7, 8]
    assert bits(quantized(two_layers(), NARROWED, target=AVX2, latency=StubLatency(1.0))) == [8, 8]
    everything = f"{NOTED},narrow-weights{{keep=all}}"
    assert bits(quantized(two_layers(), everything, target=AVX2, latency=StubLatency(2.0))) == [7, 7]


def test_layers_that_read_one_value_are_decided_on_together():
    assert bits(quantized(shared_operand(), NARROWED, target=AVX2, latency=StubLatency(0.5))) == [7]
    assert bits(quantized(shared_operand(), NARROWED, target=AVX2, latency=StubLatency(0.5, slow=6))) == [8]


def test_weights_that_would_lose_too_much():
    """Numbers far smaller than the largest of their channel need all the bits."""
    graph = two_layers()
    second = [op for op in graph.ops if isinstance(op, Conv2dOp)][1].weight.op
    weight = graph.weights[second.attrs.id]
    weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    weight[:, 0, 0, 0] = 1.0
    assert bits(quantized(graph, NARROWED, target=AVX2)) == [7, 8]
    assert bits(quantized(graph, f"{NOTED},narrow-weights{{min_sqnr=200}}", target=AVX2)) == [8, 8]


@pytest.mark.parametrize("target", [VNNI, None])
def test_other_targets_keep_eight_bits(target: object):
    outcome = quantized(two_layers(), NARROWED, target=target, latency=StubLatency(0.5))
    assert bits(outcome) == [8, 8]
    assert not outcome.report.records[-1].changed


def test_fewer_bits_stay():
    outcome = quantized(two_layers(), "quantize-annotate{weight_bits=4},quantize-calibrate,narrow-weights", target=AVX2)
    assert bits(outcome) == [4, 4]
    assert not outcome.report.records[-1].changed


def test_twice_changes_nothing_more():
    outcome = quantized(two_layers(), f"{NARROWED},narrow-weights", target=AVX2)
    assert [record.changed for record in outcome.report.records[-2:]] == [True, False]


def test_before_notes_nothing_is_there_to_do():
    assert not quantized(two_layers(), "narrow-weights", target=AVX2).report.records[0].changed
