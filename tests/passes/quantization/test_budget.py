"""``quantize{min_sqnr=...}``: the layers that may compute on integers while the outputs keep a ratio."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tersor import TersorError
from tersor.ir import DType, Graph, structurally_equal
from tersor.ir.ops import AddOp, Conv2dOp, ReluOp
from tersor.passes import run_passes
from tersor.passes.quantization.budget import LayerNoise, decibels, solve
from tersor.passes.quantization.quality import Quality, Ratio
from tersor.tests.checks import kinds, record_of
from tersor.tests.passes.quantization.networks import builder, data, quantized
from tersor.tests.passes.quantization.networks import decibels as ratio


def four_layers() -> Graph:
    b = builder()
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8, location="a"))
    y = b.conv(b.op(ReluOp, b.conv(x, 8, location="b")), 8, location="c")
    return b.done(b.conv(b.op(AddOp, b.op(ReluOp, y), x), 8, location="d"))


def on_integers(graph: Graph) -> list[bool]:
    return [op.result.type.dtype is DType.I32 for op in graph.ops if isinstance(op, Conv2dOp)]


STEPS = "quantize-annotate,quantize-calibrate,quantize-realize{keep=all,min_sqnr=%g}"


def test_layers_that_cost_too_much_stay_in_floating_point():
    graph = four_layers()
    everywhere = quantized(graph, STEPS.replace(",min_sqnr=%g", "")).graph
    wanted = ratio(graph, everywhere) + 2
    outcome = quantized(graph, STEPS % wanted)
    assert ratio(graph, outcome.graph) > wanted - 0.5  # on more data than it was chosen on
    names = [op.location for op in graph.ops if isinstance(op, Conv2dOp)]
    stays = [name for name, integer in zip(names, on_integers(outcome.graph), strict=True) if not integer]
    assert 0 < len(stays) < len(names)
    notes = record_of(outcome, "quantize-realize").notes
    assert any(f": {4 - len(stays)} of 4 layers on integers, outputs keep" in note for note in notes)
    assert {note.split()[0] for note in notes if "stays in floating point: alone it leaves" in note} == set(stays)
    assert structurally_equal(quantized(graph, STEPS % 1).graph, everywhere)


def test_a_ratio_that_nothing_keeps_leaves_the_graph_as_it_was():
    graph = four_layers()
    outcome = quantized(graph, "quantize{keep=all,min_sqnr=200}")
    assert kinds(outcome.graph) == kinds(run_passes(graph, "fuse"))
    (batch, *_) = data(graph)
    assert torch.equal(outcome.graph.evaluate(*batch)[0], graph.evaluate(*batch)[0])
    notes = record_of(outcome, "quantize-realize").notes
    assert any("0 of 4 layers on integers, outputs keep inf dB; the best layer alone leaves" in note for note in notes)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_choice_is_that_of_brute_force(outputs: int):
    draw = random.Random(outputs)
    for _ in range(100):
        layers = [
            LayerNoise(str(index), draw.random(), tuple(10 ** draw.uniform(-5, -2) for _ in range(outputs)))
            for index in range(draw.randint(1, 9))
        ]
        allowed = [10 ** draw.uniform(-4, -2) for _ in range(outputs)]
        best = 0.0
        for chosen in itertools.product((False, True), repeat=len(layers)):
            taken = [layer for layer, one in zip(layers, chosen, strict=True) if one]
            if all(sum(layer.noise[i] for layer in taken) <= allowed[i] for i in range(outputs)):
                best = max(best, sum(layer.gain for layer in taken))
        found = [layers[index] for index in solve(layers, allowed)]
        assert all(sum(layer.noise[i] for layer in found) <= allowed[i] * (1 + 1e-6) for i in range(outputs))
        assert sum(layer.gain for layer in found) == pytest.approx(best, rel=1e-5)


def test_noise_that_is_not_finite_is_never_chosen():
    layers = [LayerNoise("a", 1.0, (float("inf"),)), LayerNoise("b", 1.0, (0.0,))]
    assert solve(layers, [1e-3]) == (1,)
    assert solve(layers, [0.0]) == (1,)
    assert decibels(0.0) == float("inf")


@pytest.mark.parametrize("value", ["0", "-3", "nan"])
def test_a_ratio_must_be_positive(value: str):
    with pytest.raises(TersorError, match="min_sqnr is a ratio in dB, above 0"):
        run_passes(four_layers(), f"quantize{{min_sqnr={value}}}", calibration=data(four_layers()))


def test_the_worst_values_come_first_and_poor_outputs_get_advice():
    sizes = {"a": 10.0, "b": 1000.0, "c": 20.0, "d": 30.0, "e": 40.0, "f": 15.0, "g": 50.0}
    values = tuple((name, Ratio(size, 1.0)) for name, size in sizes.items())
    told = Quality((Ratio(1000.0, 1.0),), values).worst_note
    assert told == "lowest ratios of stored values: a 10.0 dB, f 11.8 dB, c 13.0 dB, d 14.8 dB, e 16.0 dB"
    assert Quality((Ratio(99.0, 1.0),), values).worst_note.startswith(f"{told}; try method=auto")
