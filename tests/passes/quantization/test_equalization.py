"""``cross-layer-equalization``: the function stays, weights get one size, and per-tensor weights lose less."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import Graph, Rewriter, TersorError, Value, structurally_equal
from tersor.ir.ops import AddOp, ClampOp, Conv2dOp, LeakyReluOp, LinearOp, MaxPool2dOp, MeanOp, ReluOp, ReshapeOp
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.tests.passes.quantization.networks import builder, data, decibels
from tersor.tests.random_graphs import GraphBuilder

PASS = "cross-layer-equalization"


def uneven(b: GraphBuilder, x: Value, channels: int, kernel: int = 3, groups: int = 1, lift: float = 0.0) -> Value:
    """A convolution whose filters differ in size by up to a thousand, in no order."""
    weight = torch.randn(channels, x.shape[1] // groups, kernel, kernel, generator=b.generator) / kernel
    sizes = torch.logspace(-1.5, 1.5, channels)[torch.randperm(channels, generator=b.generator)]
    bias = torch.randn(channels, generator=b.generator) * 0.1 + lift
    operands = (x, b.constant(weight * sizes.reshape(-1, 1, 1, 1)), b.constant(bias * sizes))
    return b.op(Conv2dOp, *operands, padding=(kernel // 2,) * 4, groups=groups)


def depthwise_separable(b: GraphBuilder, x: Value) -> Value:
    """Two blocks: 1x1, depthwise, 1x1."""
    for _ in range(2):
        x = b.op(ReluOp, uneven(b, x, 16, kernel=1))
        x = b.op(ReluOp, uneven(b, x, 16, groups=16))
        x = uneven(b, x, 8, kernel=1)
    return x


def with_rounded_weights(graph: Graph) -> Graph:
    """Weights in 8 bits, with one scale a tensor."""
    rounded = graph.clone()
    rewriter = Rewriter(rounded)
    for op in rounded.ops:
        if isinstance(op, Conv2dOp | LinearOp) and rewriter.commit("round", op):
            weight = rounded.weights[op.weight.op.attrs.id]
            scale = weight.abs().max() / 127
            rewriter.set_operand(op, 1, rewriter.weight((weight / scale).round() * scale, "rounded"))
    return rounded


def equalized(graph: Graph, options: str = "") -> Graph:
    return run_passes(graph, f"{PASS}{options}", calibration=data(graph))


def weights(graph: Graph) -> list[torch.Tensor]:
    return [graph.weights[op.weight.op.attrs.id] for op in graph.ops if isinstance(op, Conv2dOp | LinearOp)]


def pooled(b: GraphBuilder, x: Value) -> Value:
    x = b.op(MaxPool2dOp, b.op(ReluOp, uneven(b, x, 12)), kernel=(2, 2), stride=(2, 2))
    x = b.op(MeanOp, b.op(LeakyReluOp, uneven(b, x, 6), negative_slope=0.2), axes=(2, 3), keepdim=True)
    return b.linear(b.op(ReshapeOp, x, shape=(1, 6)), 5)


def bounded(b: GraphBuilder, x: Value) -> Value:
    x = b.op(ClampOp, uneven(b, x, 12), min=0.0, max=1.5)
    return uneven(b, b.op(ClampOp, uneven(b, x, 12, groups=4), min=0.0, max=6.0), 5)


FUNCTIONS = {"depthwise": depthwise_separable, "pooled": pooled, "bounded": bounded}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_stays_and_a_second_run_does_nothing(name: str):
    b = builder()
    graph = b.done(FUNCTIONS[name](b, b.graph.inputs[0]))
    after = equalized(graph)
    assert decibels(graph, after) > 100
    generator = torch.Generator().manual_seed(99)
    other = torch.randn(graph.inputs[0].shape, generator=generator) * 3
    scale = graph.evaluate(other)[0].abs().max()
    assert (after.evaluate(other)[0] - graph.evaluate(other)[0]).abs().max() < 1e-4 * scale
    assert not structurally_equal(after, graph)
    assert any(not torch.equal(x, y) for x, y in zip(weights(graph), weights(after), strict=True))


def test_a_second_run_changes_nothing():
    b = builder()
    graph = b.done(depthwise_separable(b, b.graph.inputs[0]))
    after = equalized(graph)
    again = PassManager(as_pipeline(PASS)).run(after, calibration=data(after))
    assert not again.report.records[0].changed
    assert again.report.records[0].notes[0].startswith("0 of 5 pairs of layers equalized")


def test_per_tensor_weights_lose_half_as_much_or_less():
    """By equalization alone, in decibels and in error, on a network with depthwise layers."""
    b = builder()
    graph = b.done(depthwise_separable(b, b.graph.inputs[0]))
    plain = decibels(graph, with_rounded_weights(graph))
    better = decibels(graph, with_rounded_weights(equalized(graph)))
    assert 10 ** (-better / 20) < 0.5 * 10 ** (-plain / 20)
    assert better > plain + 10


def test_weights_around_a_depthwise_layer_meet_at_the_cube_root():
    b = builder()
    x = uneven(b, b.graph.inputs[0], 16, kernel=1)
    graph = b.done(uneven(b, b.op(ReluOp, uneven(b, b.op(ReluOp, x), 16, groups=16)), 8, kernel=1))
    before, after = weights(graph), weights(equalized(graph))
    sizes = [
        [w[0].abs().amax((1, 2, 3)), w[1].abs().amax((1, 2, 3)), w[2].abs().amax((0, 2, 3))] for w in (before, after)
    ]
    root = (sizes[0][0] * sizes[0][1] * sizes[0][2]) ** (1 / 3)
    near = [(size / root - 1).abs() < 0.02 for size in sizes[1]]
    assert (near[0] & near[1] & near[2]).sum() >= 8  # others are held so that their numbers do not grow


def test_no_channel_outgrows_the_largest():
    b = builder()
    x = b.op(ReluOp, uneven(b, b.graph.inputs[0], 16, lift=1.0), location="act")
    graph = b.done(uneven(b, x, 8))
    after = equalized(graph, "{absorb=false}")

    def largest(one: Graph) -> float:
        probe = one.clone()
        probe.outputs = (next(op.result for op in probe.ops if isinstance(op, ReluOp)),)
        return max(probe.evaluate(*batch)[0].max().item() for batch in data(one))

    assert largest(after) <= largest(graph) * 1.0001


def test_large_biases_move_on():
    """Channels that never are zero lose their lowest number, and the activation's range its lower part."""
    b = builder()
    x = b.op(ReluOp, uneven(b, b.graph.inputs[0], 16, kernel=1, lift=30.0), location="act")
    graph = b.done(uneven(b, x, 8, kernel=1))
    after = equalized(graph)
    assert decibels(graph, after) > 90
    probe = after.clone()
    probe.outputs = (next(op.result for op in probe.ops if isinstance(op, ReluOp)),)
    lowest = torch.stack([probe.evaluate(*batch)[0] for batch in data(after)]).amin((0, 1, 3, 4))
    assert lowest.abs().max() < 1e-3
    kept = equalized(graph, "{absorb=false}")
    assert decibels(graph, kept) > 100
    quality = [
        decibels(graph, run_passes(one, "quantize{accuracy=[]}", calibration=data(graph))) for one in (kept, after)
    ]
    assert quality[1] > quality[0] + 6


def test_padding_keeps_biases_where_they_are():
    b = builder()
    x = b.op(ReluOp, uneven(b, b.graph.inputs[0], 16, kernel=1, lift=30.0))
    graph = b.done(uneven(b, x, 8, kernel=3))
    assert decibels(graph, equalized(graph)) > 90


def test_values_with_several_readers_stay():
    b = builder()
    x = b.op(ReluOp, uneven(b, b.graph.inputs[0], 8), location="act")
    graph = b.done(b.op(AddOp, uneven(b, x, 8), x))
    assert structurally_equal(equalized(graph), graph)


def test_skipped_layers_and_mistakes():
    b = builder()
    x = b.conv(b.op(ReluOp, b.conv(b.graph.inputs[0], 8, location="a")), 8, location="b")
    graph = b.done(x)
    assert structurally_equal(equalized(graph, "{skip=[b]}"), graph)
    with pytest.raises(TersorError, match=f"run {PASS} before quantize-annotate"):
        run_passes(graph, f"quantize-annotate,{PASS}", calibration=data(graph))
    with pytest.raises(TersorError, match="needs calibration data"):
        run_passes(graph, PASS)


def test_quantize_puts_it_first():
    b = builder()
    graph = b.done(depthwise_separable(b, b.graph.inputs[0]))
    outcome = PassManager(as_pipeline(f"quantize{{accuracy=[bias-correction,{PASS}]}}")).run(
        graph, calibration=data(graph)
    )
    names = [record.name for record in outcome.report.records]
    assert names[:4] == [PASS, "quantize-annotate", "quantize-calibrate", "bias-correction"]
    assert math.isfinite(decibels(graph, outcome.graph))
