"""``gptq`` and ``adaround``: against brute force and nearest integers, and what they have in common."""

from __future__ import annotations

import itertools

import pytest
import torch

from tersor.ir import Graph, Rewriter, TersorError
from tersor.ir.ops import Conv2dOp, LayerOp, LinearOp, ObserveOp, ReluOp
from tersor.passes import PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.quantization import moments, rounding
from tersor.passes.quantization.adaround import AdaRound
from tersor.passes.quantization.gptq import Gptq, round_in_order
from tersor.passes.quantization.moments import block_sizes, operand_rows
from tersor.passes.quantization.rounding import RoundingPass
from tersor.passes.quantization.scheme import rounded_weight, weight_scales
from tersor.tests.passes.quantization.networks import builder

NOTES = "quantize-annotate,quantize-calibrate"
METHODS = ("gptq", "adaround")


def correlated(rows: int, terms: int, seed: int = 0) -> torch.Tensor:
    """float64 [rows, terms] of numbers that are near a plane of a few dimensions."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, 3, generator=generator) @ torch.randn(3, terms, generator=generator)
    return (few + 0.1 * torch.randn(rows, terms, generator=generator)).double()


def covariance(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers.T @ numbers / len(numbers))[None]


def errors(steps: torch.Tensor, integers: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    off = integers - steps
    return ((off @ matrix) * off).sum(2)


def step_by_step(steps: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Optimal brain surgery in a fixed order: the inverse is downdated after each weight."""
    left, inverse = steps.clone(), torch.linalg.inv(matrix)
    found = torch.empty_like(steps)
    largest = steps.abs().argmax(1)
    for term in range(steps.shape[1]):
        integer = left[:, term].round().clamp(-127, 127)
        integer = torch.where(largest == term, steps[:, term].round(), integer)
        found[:, term] = integer
        error = (left[:, term] - integer) / inverse[term, term]
        left -= error[:, None] * inverse[term]
        inverse = inverse - inverse[:, term, None] * inverse[None, term] / inverse[term, term]
    return found


@pytest.mark.parametrize("terms", [5, 130, 300])
def test_gptq_is_optimal_brain_surgery_in_a_fixed_order(terms: int):
    generator = torch.Generator().manual_seed(1)
    steps = torch.randn(6, terms, generator=generator).double()
    steps = steps / steps.abs().amax(1, keepdim=True) * 127
    matrix = covariance(correlated(1000, terms))[0]
    matrix = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(terms)
    largest = steps.abs().argmax(1)

    def nearest(term: int, column: torch.Tensor) -> torch.Tensor:
        return torch.where(largest == term, steps[:, term].round(), column.round().clamp(-127, 127))

    assert torch.equal(round_in_order(steps[None], matrix[None], nearest)[0], step_by_step(steps, matrix))


@pytest.mark.parametrize("method", [Gptq(), AdaRound()])
def test_near_the_best_integers(method: RoundingPass):
    """Of all roundings up and down of six weights."""
    generator = torch.Generator().manual_seed(2)
    steps = (torch.rand(20, 6, generator=generator).double() - 0.5) * 20
    steps[:, 0] = 127
    matrix = covariance(correlated(500, 6))
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=torch.float64)
    best = []
    for row in steps:
        corners = torch.cat([torch.full((len(choices), 1), 127.0), row[1:].floor() + choices], 1)
        best.append(errors(row[None, None], corners[None], matrix).min())
    found = method.choose(steps[None], torch.ones(1, 20, 1, dtype=torch.float64), matrix, 127)
    nearest = errors(steps[None], steps[None].round(), matrix).sum()
    assert errors(steps[None], found, matrix).sum() < 0.6 * nearest
    assert errors(steps[None], found, matrix).sum() < 4 * torch.stack(best).sum()


def test_adaround_rounds_up_or_down_and_learns():
    """Each weight goes to one of its two neighbours, and the descent does better than the last sweep alone."""
    generator = torch.Generator().manual_seed(3)
    steps = torch.randn(1, 32, 60, generator=generator).double()
    steps = steps / steps.abs().amax(2, keepdim=True) * 127
    matrix = covariance(correlated(2000, 60) + torch.randn(2000, 60, generator=generator).double())
    scales = torch.ones(1, 32, 1, dtype=torch.float64)
    long, short = (AdaRound(count).choose(steps, scales, matrix, 127) for count in (400, 1))
    for found in (long, short):
        assert (found - steps).abs().max() < 1
        assert torch.equal(found, found.round())
    learned, swept, nearest = (errors(steps, one, matrix).sum() for one in (long, short, steps.round()))
    assert learned < swept < 0.5 * nearest


# Graphs ---------------------------------------------------------------------------------------------------------------


def images(count: int = 6) -> list[tuple[torch.Tensor]]:
    """Smooth pictures, whose neighbouring numbers are alike."""
    generator = torch.Generator().manual_seed(5)
    coarse = [torch.randn(1, 8, 5, 5, generator=generator) for _ in range(count)]
    return [(torch.nn.functional.interpolate(one, (10, 10), mode="bilinear") + 0.3,) for one in coarse]


def network(kind: str) -> tuple[Graph, list[tuple[torch.Tensor]]]:
    if kind == "linear":
        b = builder(200, 40)
        graph = b.done(b.linear(b.op(ReluOp, b.linear(b.graph.inputs[0], 32)), 12))
        return graph, [(correlated(200, 40, seed).float() + 0.5,) for seed in (0,) * 3]
    b = builder()
    groups = {"convolution": 1, "grouped": 4, "depthwise": 8}[kind]
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8, groups=groups))
    return b.done(b.conv(x, 8, stride=2, groups=groups, bias=kind != "grouped")), images()


def noted(graph: Graph, data: list[tuple[torch.Tensor]]) -> Graph:
    return run_passes(graph, NOTES, calibration=data)


def applied(graph: Graph, data: list[tuple[torch.Tensor]], method: str) -> PassOutcome:
    return PassManager(as_pipeline(method)).run(graph, calibration=data)


def layers(graph: Graph) -> list[LayerOp]:
    return [op for op in graph.ops if isinstance(op, Conv2dOp | LinearOp)]


def weight_of(graph: Graph, op: LayerOp) -> torch.Tensor:
    return graph.weights[op.weight.op.attrs.id]


def squared_error(exact: Graph, found: Graph, data: list[tuple[torch.Tensor]]) -> float:
    return sum((exact.evaluate(*one)[0] - found.evaluate(*one)[0]).double().square().sum().item() for one in data)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "grouped", "depthwise"])
def test_less_error_than_the_nearest_integers(kind: str, method: str):
    """With the activations exact, so that only the weights' rounding counts."""
    graph, data = network(kind)
    before = noted(graph, data)
    outcome = applied(before, data, method)
    corrected = run_passes(before, "bias-correction", calibration=data)
    plain, chosen = (rounded_weights(one) for one in (corrected, outcome.graph))
    assert squared_error(graph, chosen, data) < 0.7 * squared_error(graph, plain, data)
    assert squared_error(graph, outcome.graph, data) == pytest.approx(squared_error(graph, chosen, data), rel=0.01)


def rounded_weights(graph: Graph) -> Graph:
    copy = graph.clone()
    rewriter = Rewriter(copy)
    for op in layers(copy):
        rewriter.commit("round", op)
        weight = weight_of(copy, op).double()
        scales = weight_scales(weight)
        shape = (-1, *[1] * (weight.ndim - 1))
        made = rounded_weight(weight, scales) * scales.reshape(shape)
        rewriter.set_operand(op, 1, rewriter.weight(made.float(), "rounded"))
    return copy


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "grouped", "depthwise"])
def test_weights_are_integers_that_realize_finds_again(kind: str, method: str):
    graph, data = network(kind)
    after = applied(noted(graph, data), data, method).graph
    for before, op in zip(layers(graph), layers(after), strict=True):
        old, new = weight_of(graph, before).double(), weight_of(after, op).double()
        scales = weight_scales(old).reshape(-1, *[1] * (old.ndim - 1))
        integers = new / scales
        assert (integers - integers.round()).abs().max() < 1e-3
        assert torch.equal(rounded_weight(new, weight_scales(new)), integers.round())
        assert (integers.round() - old / scales).abs().max() < 12


@pytest.mark.parametrize("method", METHODS)
def test_means_of_outputs_stay(method: str):
    graph, data = network("convolution")
    outcome = applied(noted(graph, data), data, f"{method},quantize-realize")
    off = torch.cat([outcome.graph.evaluate(*one)[0] - graph.evaluate(*one)[0] for one in data])
    assert off.mean((0, 2, 3)).abs().max() < 0.15 * off.std()


@pytest.mark.parametrize("method", METHODS)
def test_a_second_run_changes_nothing(method: str):
    graph, data = network("linear")
    outcome = applied(noted(graph, data), data, f"{method},{method}")
    assert [record.changed for record in outcome.report.records] == [True, False]
    assert outcome.report.records[0].notes[0].startswith("2 layers, squared error of rounding weights 0.")
    assert not applied(graph, data, method).report.records[0].changed


@pytest.mark.parametrize("method", METHODS)
def test_mistakes_are_named(method: str):
    graph, data = network("linear")
    with pytest.raises(TersorError, match="the range of input 'x' is not known; run quantize-calibrate first"):
        applied(run_passes(graph, "quantize-annotate"), data, method)
    with pytest.raises(TersorError, match=f"has a corrected bias already; put {method} before bias-correction"):
        applied(noted(graph, data), data, f"bias-correction,{method}")
    with pytest.raises(TersorError, match="needs calibration data"):
        PassManager(as_pipeline(method)).run(noted(graph, data))


def test_bad_options_are_refused():
    for text, message in (
        ("gptq{damping=0.0}", "damping must be above 0, not 0"),
        ("adaround{iterations=0}", "iterations must be 1 or more, not 0"),
        ("adaround{strength=-1.0}", "strength must be above 0, not -1"),
    ):
        with pytest.raises(PipelineError, match=message):
            parse_pipeline(text)


def test_inputs_that_never_vary_and_empty_channels_are_rounded_to_the_nearest():
    b = builder(50, 6)
    weight = torch.randn(4, 6, generator=b.generator)
    weight[1] = 0
    graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.constant(weight), None))
    numbers = correlated(50, 6).float()
    numbers[:, 2] = 0
    data = [(numbers,)]
    for method in METHODS:
        after = applied(noted(graph, data), data, method).graph
        (op,) = layers(after)
        assert torch.equal(weight_of(after, op)[1], torch.zeros(6))
        assert after.evaluate(numbers)[0].isfinite().all()


@pytest.mark.parametrize(
    "pipeline", [f"{NOTES},gptq,quantize-realize", f"{NOTES},adaround,quantize-realize", "quantize-weights"]
)
def test_numbers_that_hardly_vary_do_not_cancel(pipeline: str):
    """Means of 10 with variances of float32's rounding, as behind a layer whose weights are zero."""
    b = builder(1, 16)
    graph = b.done(b.linear(b.graph.inputs[0], 4))
    generator = torch.Generator().manual_seed(2)
    mean = 10 + torch.rand(1, 16, generator=generator)
    data = [(mean * (1 + 1e-7 * index),) for index in range(5)]
    after = run_passes(graph, pipeline, calibration=data)
    expected, found = (one.evaluate(mean)[0] for one in (graph, after))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# What is kept of the data -------------------------------------------------------------------------------------------


def test_portions_and_blocks_change_little(monkeypatch: pytest.MonkeyPatch):
    """With little memory: one layer at a time, whose rows are split."""
    graph, data = network("linear")
    whole = squared_error(graph, applied(noted(graph, data), data, "gptq").graph, data)
    monkeypatch.setattr(moments, "MOST_TERMS", 12)
    monkeypatch.setattr(rounding, "_BYTES", 1)
    split = squared_error(graph, applied(noted(graph, data), data, "gptq").graph, data)
    nearest = squared_error(
        graph, rounded_weights(run_passes(noted(graph, data), "bias-correction", calibration=data)), data
    )
    assert whole < split < nearest


def test_block_sizes_add_up():
    for terms in (1, 4096, 4097, 25088):
        sizes = block_sizes(terms)
        assert sum(sizes) == terms
        assert max(sizes) <= 4096
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", ["linear", "convolution", "grouped", "depthwise"])
def test_rows_times_weights_are_the_layer(kind: str):
    graph, data = network(kind)
    after = noted(graph, data)
    op = layers(after)[0]
    assert isinstance(op.x.op, ObserveOp)
    weight = weight_of(after, op)
    rows = torch.cat(list(operand_rows(op, data[0][0])), 1)
    product = rows @ weight.reshape(op.channel_groups, -1, rows.shape[2]).mT
    expected = op.evaluate(data[0][0], weight, None)
    expected = expected if kind == "linear" else expected[0].flatten(1).T
    torch.testing.assert_close(product.transpose(0, 1).flatten(1), expected, rtol=1e-4, atol=1e-4)
