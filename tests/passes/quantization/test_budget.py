"""``quantize{min_sqnr=...}``: the layers that may compute on integers while the outputs keep a ratio."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch

from tersor import TersorError
from tersor.ir import DType, Graph, structurally_equal
from tersor.ir.ops import AddOp, Conv2dOp, ReluOp
from tersor.passes import run_passes
from tersor.passes.quantization.budget import LayerVariant, TriedVariant, decibels, solve
from tersor.passes.quantization.quality import Quality, Ratio, StoredRatio
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
    assert any(f": of 4 layers {4 - len(stays)} on integers; outputs keep" in note for note in notes)
    assert {note.split()[0] for note in notes if "stays in floating point: alone on integers it leaves" in note} == set(
        stays
    )
    assert structurally_equal(quantized(graph, STEPS % 1).graph, everywhere)


def test_a_ratio_that_nothing_keeps_leaves_the_graph_as_it_was():
    graph = four_layers()
    outcome = quantized(graph, "quantize{keep=all,min_sqnr=200}")
    assert kinds(outcome.graph) == kinds(run_passes(graph, "fuse"))
    (batch, *_) = data(graph)
    assert torch.equal(outcome.graph.evaluate(*batch)[0], graph.evaluate(*batch)[0])
    notes = record_of(outcome, "quantize-realize").notes
    assert any("of 4 layers 0 on integers; outputs keep inf dB; the best layer alone leaves" in note for note in notes)


def tried(layer: int, gain: float, noise: tuple[float, ...]) -> TriedVariant:
    return TriedVariant(LayerVariant(layer, str(layer), "on integers", gain), noise)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("ways", [1, 2, 3, 4])
def test_the_choice_is_that_of_brute_force(outputs: int, ways: int):
    draw = random.Random(10 * ways + outputs)
    for _ in range(100):
        layers = draw.randint(1, {1: 9, 2: 5, 3: 4, 4: 4}[ways])
        variants = [
            tried(layer, draw.random(), tuple(10 ** draw.uniform(-5, -2) for _ in range(outputs)))
            for layer in range(layers)
            for _ in range(ways)
        ]
        allowed = [10 ** draw.uniform(-4, -2) for _ in range(outputs)]
        best = 0.0
        for taken in itertools.product(range(ways + 1), repeat=layers):  # the last: none of its ways
            chosen = [variants[ways * layer + way] for layer, way in enumerate(taken) if way < ways]
            if all(sum(one.noise[i] for one in chosen) <= allowed[i] for i in range(outputs)):
                best = max(best, sum(one.variant.gain for one in chosen))
        found = [variants[index] for index in solve(variants, allowed)]
        assert len({one.variant.layer for one in found}) == len(found)
        assert all(sum(one.noise[i] for one in found) <= allowed[i] * (1 + 1e-6) for i in range(outputs))
        assert sum(one.variant.gain for one in found) == pytest.approx(best, rel=1e-5)


def test_noise_that_is_not_finite_is_never_chosen():
    variants = [tried(0, 1.0, (float("inf"),)), tried(1, 1.0, (0.0,))]
    assert solve(variants, [1e-3]) == (1,)
    assert solve(variants, [0.0]) == (1,)
    assert decibels(0.0) == float("inf")


def test_the_solver_prints_nothing(capfd):
    """What HiGHS prints of its own accord would be among results for machines."""
    for seed in range(12):
        draw = random.Random(seed)
        sizes = ((1.0, 1e-4), (0.3, 1e-6), (0.8, 1e-3))
        variants = [
            tried(layer, draw.random() * gain, (noise * 10 ** draw.uniform(-1, 1),))
            for layer in range(42)
            for gain, noise in sizes
        ]
        for limit in (1e-2, 1e-3, 1e-4, 3e-5):
            solve(variants, [limit])
    print("still there")
    assert capfd.readouterr().out == "still there\n"


def closeness(graph: Graph) -> Callable[[Graph], float]:
    """A score: decibels that the output of a model keeps, 100 at most."""
    (batch, *_) = data(graph)
    (exact,) = graph.evaluate(*batch)
    return lambda model: 100.0 if torch.equal(exact, model.evaluate(*batch)[0]) else ratio(graph, model)


def test_the_score_may_fall_by_what_the_user_says():
    graph = four_layers()
    everywhere = ratio(graph, quantized(graph, STEPS.replace(",min_sqnr=%g", "")).graph)
    drop = 100 - everywhere - 2  # 2 dB better than everything on integers
    steps = STEPS.replace("min_sqnr=%g", f"max_drop={drop:.3f}")
    outcome = quantized(graph, steps, score=closeness(graph))
    assert 0 < sum(on_integers(outcome.graph)) < 4
    assert ratio(graph, outcome.graph) >= everywhere + 2
    (note,) = [note for note in record_of(outcome, "quantize-realize").notes if "max_drop=" in note]
    assert f"score {ratio(graph, outcome.graph):.3f}"[:9] in note
    assert "of 100, outputs keep" in note


def test_everything_is_on_integers_where_the_score_does_not_mind():
    scored: list[Graph] = []

    def score(model: Graph) -> float:
        scored.append(model)
        return 0.5

    outcome = quantized(four_layers(), STEPS.replace("min_sqnr=%g", "max_drop=0"), score=score)
    assert sum(on_integers(outcome.graph)) == 4
    assert len(scored) == 2  # the original, and everything


def test_a_drop_that_nothing_meets_says_what_came_closest():
    graph = four_layers()
    outcome = quantized(graph, "quantize{keep=all,max_drop=0.001}", score=closeness(graph))
    assert kinds(outcome.graph) == kinds(run_passes(graph, "fuse"))
    notes = record_of(outcome, "quantize-realize").notes
    assert any("score 100 of 100, what came closest changes" in note for note in notes)


def test_a_drop_needs_a_score():
    with pytest.raises(TersorError, match=r"pass 'quantize-realize' needs a score of the model: .*evaluate="):
        run_passes(four_layers(), "quantize{max_drop=0.01}", calibration=data(four_layers()))
    with pytest.raises(TersorError, match="max_drop must be 0 or more, not -1: it is what the score may fall by"):
        run_passes(four_layers(), "quantize{max_drop=-1}", calibration=data(four_layers()))


def narrow(graph: Graph) -> list[bool]:
    return [op.result.type.dtype is DType.BF16 for op in graph.ops if isinstance(op, Conv2dOp)]


def test_what_is_not_on_integers_can_be_in_16_bits():
    graph = four_layers()
    outcome = quantized(graph, "quantize-annotate{skip=[b]},quantize-calibrate,quantize-realize{keep=all,others=bf16}")
    assert on_integers(outcome.graph) == [True, False, True, True]
    assert narrow(outcome.graph) == [False, True, False, False]
    assert ratio(graph, outcome.graph) > 25


def test_a_budget_chooses_among_integers_16_bits_and_float32():
    graph = four_layers()
    everywhere = ratio(graph, quantized(graph, STEPS.replace(",min_sqnr=%g", "")).graph)
    halves = ratio(graph, run_passes(graph, "to-bf16"))
    assert halves > everywhere + 3
    steps = STEPS.replace("}", ",others=bf16}")
    between = quantized(graph, steps % ((everywhere + halves) / 2))
    assert any(narrow(between.graph))
    assert ratio(graph, between.graph) > (everywhere + halves) / 2 - 0.5
    finest = quantized(graph, steps % (halves + 3))
    kinds_of_layers = list(zip(on_integers(finest.graph), narrow(finest.graph), strict=True))
    assert (False, False) in kinds_of_layers
    assert any(
        "and bf16 it leaves" in note or "in bf16 it leaves" in note
        for note in record_of(finest, "quantize-realize").notes
    )


@pytest.mark.parametrize("value", ["0", "-3", "nan"])
def test_a_ratio_must_be_positive(value: str):
    with pytest.raises(TersorError, match="min_sqnr is a ratio in dB, above 0"):
        run_passes(four_layers(), f"quantize{{min_sqnr={value}}}", calibration=data(four_layers()))


def test_the_worst_values_come_first_and_poor_outputs_get_advice():
    sizes = {"a": 10.0, "b": 1000.0, "c": 20.0, "d": 30.0, "e": 40.0, "f": 15.0, "g": 50.0}
    values = tuple((name, StoredRatio(size, 1.0)) for name, size in sizes.items())
    told = Quality((Ratio(1000.0, 1.0),), values).worst_note
    assert told == "lowest ratios of stored values: a 10.0 dB, f 11.8 dB, c 13.0 dB, d 14.8 dB, e 16.0 dB"
    assert Quality((Ratio(99.0, 1.0),), values).worst_note.startswith(f"{told}; try method=auto")
