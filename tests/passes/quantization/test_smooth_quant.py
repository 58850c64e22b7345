"""``smooth-quant``: channels of very different sizes in front of linear layers."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import Graph, TersorError, structurally_equal
from tersor.ir.ops import AddOp, LayerNormOp, LinearOp, MulOp, ReluOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.tests.checks import kinds
from tersor.tests.passes.quantization.networks import builder
from tersor.tests.random_graphs import GraphBuilder

ROWS, FEATURES = 32, 24


def inputs(large: float, count: int = 4) -> list[tuple[torch.Tensor]]:
    """Normal numbers; two channels are ``large`` times the others."""
    generator = torch.Generator().manual_seed(7)
    batches = [torch.randn(ROWS, FEATURES, generator=generator) for _ in range(count)]
    for batch in batches:
        batch[:, [3, 11]] *= large
    return [(batch,) for batch in batches]


def decibels(exact: Graph, found: Graph, data: list[tuple[torch.Tensor]]) -> float:
    noise = signal = 0.0
    for one in data:
        expected, given = exact.evaluate(*one)[0].double(), found.evaluate(*one)[0].double()
        noise += (expected - given).square().sum().item()
        signal += expected.square().sum().item()
    return 10 * math.log10(signal / noise)


def one_layer() -> Graph:
    """The layer's weights are small where the numbers are large, so that all channels count alike."""
    b = builder(ROWS, FEATURES)
    weight = torch.randn(16, FEATURES, generator=b.generator)
    weight[:, [3, 11]] *= 0.05
    return b.done(b.op(LinearOp, b.graph.inputs[0], b.constant(weight), b.weight(16), location="fc"))


def transformer(b: GraphBuilder) -> Graph:
    """Two layers that share a normalised activation, which is read by nothing else, and one that shares a sum."""
    gamma = torch.ones(FEATURES)
    gamma[5] = 60.0
    norm = b.op(LayerNormOp, b.graph.inputs[0], b.constant(gamma), b.weight(FEATURES), location="norm")
    both = b.op(AddOp, b.linear(norm, FEATURES), b.linear(norm, FEATURES))
    scaled = b.op(MulOp, both, b.constant(gamma))
    return b.done(b.op(AddOp, b.linear(scaled, FEATURES), scaled))


@pytest.mark.parametrize("large", [20.0, 100.0])
def test_large_channels_do_not_cost_the_others(large: float):
    graph, data = one_layer(), inputs(large)
    plain = run_passes(graph, "quantize{accuracy=[bias-correction]}", calibration=data)
    smooth = run_passes(graph, "quantize", calibration=data)
    assert decibels(graph, plain, data) < 33
    assert decibels(graph, smooth, data) > decibels(graph, plain, data) + 8
    assert decibels(graph, smooth, data) > 36


def test_the_function_stays():
    b = builder(ROWS, FEATURES)
    graph = transformer(b)
    data = inputs(1.0)
    outcome = PassManager(as_pipeline("smooth-quant")).run(graph, calibration=data)
    after = outcome.graph
    assert outcome.report.records[0].changed
    assert decibels(graph, after, data) > 100
    assert sum(isinstance(op, MulOp) for op in after.ops) == 2  # nothing behind the norm, one behind the product
    norm = next(op for op in after.ops if isinstance(op, LayerNormOp))
    assert norm.location == "norm"
    assert after.weights[norm.gamma.op.attrs.id].max() < 30
    again = PassManager(as_pipeline("smooth-quant")).run(after, calibration=data)
    assert not again.report.records[0].changed
    assert structurally_equal(again.graph, after)


@pytest.mark.parametrize("read_twice", [False, True])
def test_factors_go_into_the_layer_before(read_twice: bool):
    """Through what keeps them; not where something else reads what it makes."""
    b = builder(ROWS, FEATURES)
    weight = torch.randn(20, FEATURES, generator=b.generator)
    weight[4] *= 100
    x = b.op(ReluOp, b.op(LinearOp, b.graph.inputs[0], b.constant(weight), b.weight(20)))
    y = b.linear(x, 20)
    graph = b.done(b.op(AddOp, y, x) if read_twice else y)
    after = run_passes(graph, "smooth-quant", calibration=inputs(1.0))
    assert decibels(graph, after, inputs(1.0)) > 100
    assert not structurally_equal(after, graph)
    assert ("mul" in kinds(after)) == read_twice


def test_other_readers_of_a_norm_read_what_they_read():
    b = builder(ROWS, FEATURES)
    gamma = torch.ones(FEATURES)
    gamma[5] = 60.0
    norm = b.op(LayerNormOp, b.graph.inputs[0], b.constant(gamma), b.weight(FEATURES))
    graph = b.done(b.op(AddOp, b.linear(norm, FEATURES), norm))
    after = run_passes(graph, "smooth-quant", calibration=inputs(1.0))
    assert "mul" in kinds(after)
    assert decibels(graph, after, inputs(1.0)) > 100


def test_even_channels_are_left_alone():
    b = builder(ROWS, FEATURES)
    even = b.done(b.linear(b.graph.inputs[0], 16))
    outcome = PassManager(as_pipeline("smooth-quant")).run(even, calibration=inputs(1.0))
    assert not outcome.report.records[0].changed
    assert "0 of 1 activations smoothed" in outcome.report.records[0].notes
    told = PassManager(as_pipeline("smooth-quant{alpha=0.5}")).run(even, calibration=inputs(1.0))
    assert told.report.records[0].changed
    assert told.report.records[0].notes[1].startswith("input 'x': alpha 0.5, error ")


def test_alpha_moves_that_share():
    """By the formula, in float64."""
    graph, data = one_layer(), inputs(100.0)
    after = run_passes(graph, "smooth-quant{alpha=0.7}", calibration=data)
    (linear,) = (op for op in after.ops if isinstance(op, LinearOp))
    (before,) = (op for op in graph.ops if isinstance(op, LinearOp))
    weight = graph.weights[before.weight.op.attrs.id].double()
    largest = torch.cat([batch for (batch,) in data]).abs().amax(0).double()
    factors = largest**0.7 / weight.abs().amax(0) ** 0.3
    found = after.weights[linear.weight.op.attrs.id].double()
    torch.testing.assert_close(found, weight * factors, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolutions_on_request(groups: int):
    b = builder()
    graph = b.done(b.conv(b.op(ReluOp, b.graph.inputs[0]), 8, groups=groups))
    generator = torch.Generator().manual_seed(2)
    data = [(torch.randn(1, 8, 10, 10, generator=generator) * torch.logspace(0, 3, 8).reshape(8, 1, 1),)]
    assert "mul" not in kinds(run_passes(graph, "smooth-quant", calibration=data))
    after = run_passes(graph, "smooth-quant{convolutions=true}", calibration=data)
    assert "mul" in kinds(after)
    assert decibels(graph, after, data) > 100
    integers = [run_passes(one, "quantize{accuracy=[]}", calibration=data) for one in (graph, after)]
    if groups == 8:  # every channel has a scale of its own now
        errors = [(one.evaluate(*data[0])[0] - graph.evaluate(*data[0])[0])[:, 0].square().sum() for one in integers]
        assert errors[1] < 1e-3 * errors[0]


def test_dead_channels_and_skipped_layers_stay():
    graph = one_layer()
    data = [(torch.cat([batch[:, :-1], torch.zeros(ROWS, 1)], 1),) for (batch,) in inputs(100.0)]
    after = run_passes(graph, "smooth-quant", calibration=data)
    assert decibels(graph, after, inputs(100.0)) > 100
    skipped = run_passes(graph, "smooth-quant{skip=[fc]}", calibration=data)
    assert structurally_equal(skipped, graph)


def test_mistakes_are_named():
    graph, data = one_layer(), inputs(20.0)
    with pytest.raises(TersorError, match="run smooth-quant before quantize-annotate"):
        run_passes(graph, "quantize-annotate,smooth-quant", calibration=data)
    with pytest.raises(TersorError, match="needs calibration data"):
        run_passes(graph, "smooth-quant")
    with pytest.raises(TersorError, match="batch 1 makes numbers at input 'x' that are not finite"):
        run_passes(graph, "smooth-quant", calibration=[data[0], (torch.full((ROWS, FEATURES), torch.nan),)])
    with pytest.raises(PipelineError, match="alpha must be from 0 to 1, or none, not 2"):
        parse_pipeline("smooth-quant{alpha=2.0}")
