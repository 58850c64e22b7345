"""``quantize{others=[...]}``: ways to compute layers besides 8-bit integers and float32."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tersor import TersorError
from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import LinearOp, PackedLinearOp, ReluOp
from tersor.passes import parse_pipeline, run_passes
from tersor.passes.base import PassContext
from tersor.passes.quantization.budget import LayerVariant, NoiseBudget, choose_variants, noise_of
from tersor.passes.quantization.budget import decibels as decibels_of
from tersor.passes.quantization.draft import INTEGERS, Draft
from tersor.passes.quantization.ways import WAYS
from tersor.tests.checks import record_of
from tersor.tests.passes.lowrank.planted import Clock, Reading
from tersor.tests.passes.quantization.networks import data, decibels, quantized
from tersor.tests.random_graphs import GraphBuilder

REALIZE = "quantize-annotate,quantize-calibrate,quantize-realize{keep=all%s}"


def layers(count: int = 4, seed: int = 0, wide: int = 32) -> Graph:
    """Linear layers one after another, of which each reads the one before."""
    b = GraphBuilder({"x": TensorType((8, wide))}, seed)
    x = b.graph.inputs[0]
    for index in range(count):
        x = b.linear(x, wide, location=f"fc{index}")
        x = b.op(ReluOp, x) if index < count - 1 else x
    return b.done(x)


def computed(graph: Graph) -> dict[str, str]:
    """How each linear layer of a graph is computed."""
    found = {}
    for op in graph.ops:
        if isinstance(op, PackedLinearOp):
            found[op.location] = f"int{op.attrs.bits}{'-dynamic' if op.x.type.dtype is DType.I8 else ''}"
        elif isinstance(op, LinearOp):
            dynamic = op.x.op is not None and op.x.op.name == "quantize_by"
            found[op.location] = (
                "int8-dynamic"
                if dynamic
                else {DType.F32: "float32", DType.BF16: "bf16"}.get(op.result.type.dtype, "integers")
            )
    return found


@pytest.mark.parametrize("name", ["bf16", "int4", "int8", "int4-dynamic", "int8-dynamic"])
def test_each_way_computes_what_is_not_on_integers(name: str):
    graph = layers()
    text = f"quantize-annotate{{skip=[fc1,fc2]}},quantize-calibrate,quantize-realize{{keep=all,others={name}}}"
    outcome = quantized(graph, text)
    kinds = computed(outcome.graph)
    assert (kinds["fc0"], kinds["fc3"]) == ("integers", "integers")
    assert (kinds["fc1"], kinds["fc2"]) == (name, name)
    assert decibels(graph, outcome.graph) > (15 if "4" in name else 25)


def test_several_ways_are_a_list():
    (one,) = parse_pipeline("quantize-realize{others=[bf16,int4]}").passes
    assert one.other_ways == ("bf16", "int4")
    assert str(parse_pipeline("quantize{others=[bf16,int4]}")) == "quantize{others=[bf16,int4]}"
    assert str(parse_pipeline("quantize{others=bf16}")) == "quantize{others=bf16}"
    with pytest.raises(TersorError, match="unknown way to compute a layer 'int5'; did you mean 'int"):
        parse_pipeline("quantize{others=[bf16,int5]}")
    assert set(WAYS.names()) == {"bf16", "f16", "int4", "int8", "int4-dynamic", "int8-dynamic"}


def test_weights_of_few_bits_are_rounded_by_gptq():
    """As by ``quantize-weights``, whose integers these are."""
    graph = layers(1, wide=64)
    alone = run_passes(graph, "quantize-weights{keep=all}", calibration=data(graph))
    noted = quantized(graph, "quantize-annotate,quantize-calibrate").graph
    draft = Draft("test", noted.clone(), noted, {"int4": WAYS.find("int4")()})
    (op,) = (one for one in noted.ops if isinstance(one, LinearOp))
    draft.prepare([(op, "int4")], PassContext(calibration=data(graph)))
    (batch, *_) = data(graph)
    assert torch.equal(draft.planned({op: "int4"})[0].evaluate(*batch)[0], alone.evaluate(*batch)[0])


def test_a_budget_chooses_among_four_ways():
    """The closer the outputs must be, the more bits the layers get."""
    graph = layers(6)
    finest = decibels(graph, run_passes(graph, "to-bf16"))
    seen = []
    for ratio in (15, finest - 1, finest + 3):
        outcome = quantized(graph, REALIZE % f",min_sqnr={ratio},others=[bf16,int4]")
        assert decibels(graph, outcome.graph) > ratio - 1  # on more data than it was chosen on
        seen.append(set(computed(outcome.graph).values()))
    assert seen == [{"integers"}, {"bf16"}, {"bf16", "float32"}]


def test_a_ratio_that_is_nearly_kept_costs_one_layer():
    """Noises may add up to a little more than was estimated; then one layer changes, not all of them."""
    graph = layers(6)
    (note,) = (one for one in notes_of(graph, ",min_sqnr=1") if "outputs keep" in one)
    kept = float(note.split("outputs keep ")[1].split()[0])
    outcome = quantized(graph, REALIZE % f",min_sqnr={kept + 0.1},others=[bf16,int4]")
    assert sorted(computed(outcome.graph).values()) == ["bf16", *["integers"] * 5]


def test_the_report_says_what_each_layer_costs_and_saves():
    class Halves(Clock):
        """Integers and 16 bits take less time, in this order."""

        def compare(self, before: Graph, after: Graph) -> Reading:
            narrow = any(value.type.dtype is DType.BF16 for op in after.ops for value in op.results)
            return Reading(1e-3, 0.75e-3 if narrow else 0.5e-3, 0.02)

    graph = layers(3)
    notes = notes_of(graph, ",min_sqnr=45,others=bf16", latency=Halves())
    found = [note for note in notes if note.startswith("fc") and " is in bf16, " in note]
    figures = r"leaves \d+\.\d dB and saves"
    expected = rf"fc\d is in bf16, which {figures} 0.25 ms: alone on integers it {figures} 0.5 ms"
    assert found
    assert all(re.fullmatch(expected, note) for note in found)


def notes_of(graph: Graph, options: str, **given: Any) -> tuple[str, ...]:
    return record_of(quantized(graph, REALIZE % options, **given), "quantize-realize").notes


def test_the_choice_on_drawn_networks_is_that_of_brute_force():
    """Four ways and float32 for each of three layers, with the noise that each has in the network, and drawn gains."""
    exact_answers = 0
    for seed in range(6):
        draw = random.Random(seed)
        graph = layers(3, seed)
        noted = quantized(graph, "quantize-annotate,quantize-calibrate").graph
        ways = {name: WAYS.find(name)() for name in ("bf16", "int4", "int8-dynamic")}
        draft = Draft("test", noted.clone(), noted, ways)
        linears = [op for op in noted.ops if isinstance(op, LinearOp)]
        choices = [(op, way) for op in linears for way in (INTEGERS, *draft.ways)]
        draft.prepare(choices, PassContext(calibration=data(graph)))
        variants = [LayerVariant(linears.index(op), op.location, way, draw.random()) for op, way in choices]

        def planned(chosen: Sequence[int], draft: Draft = draft, choices: Sequence[Any] = choices) -> Graph:
            return draft.planned(dict(choices[index] for index in chosen))[0]

        batches = data(graph, 2)
        expected = [(batch, graph.evaluate(*batch)) for batch in batches]
        noises = [noise_of(planned((index,)), expected)[0] for index in range(len(variants))]
        limit = draw.uniform(1.0, 3.0) * sorted(noises)[len(noises) // 2]
        budget = NoiseBudget(min_sqnr=decibels_of(limit))
        choice = choose_variants(graph, variants, planned, batches, budget, None, lambda text: None)
        best = max(fitting(noises, limit, 3), key=lambda chosen: math.fsum(variants[index].gain for index in chosen))
        gain, most = (math.fsum(variants[index].gain for index in chosen) for chosen in (choice.chosen, best))
        assert noise_of(planned(choice.chosen), expected)[0] <= limit
        if noise_of(planned(best), expected)[0] <= limit:  # noises add up to no more than was estimated
            exact_answers += 1
            assert gain == pytest.approx(most, rel=1e-5)
        else:
            assert gain < most
    assert exact_answers >= 3


def fitting(noises: Sequence[float], limit: float, count: int) -> list[tuple[int, ...]]:
    """All choices of at most one way for each of ``count`` layers whose noises add up to no more than the limit."""
    each = len(noises) // count
    ways = [(None, *range(layer * each, (layer + 1) * each)) for layer in range(count)]
    taken = (tuple(index for index in one if index is not None) for one in itertools.product(*ways))
    return [one for one in taken if math.fsum(noises[index] for index in one) <= limit]
