"""``quantize``: every kind of op becomes integers, and the numbers stay near; test_quantize_limits.py has the rest."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, parse, structurally_equal
from tersor.ir.ops import AddOp, Conv2dOp, LinearOp, MaxPool2dOp, ObserveOp, QuantizeOp, ReluOp
from tersor.passes import run_passes
from tersor.tests.checks import kinds, record_of
from tersor.tests.passes.quantization.networks import (
    FEWEST_DECIBELS,
    NETWORKS,
    STEPS,
    builder,
    data,
    decibels,
    quantized,
    residual,
    shortcut,
)


@pytest.mark.parametrize("activations", ["u8", "i8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, activations: str):
    b = builder()
    graph = b.done(NETWORKS[name](b, b.graph.inputs[0]))
    before = str(graph)
    outcome = quantized(graph, STEPS.replace("annotate", f"annotate{{activations={activations}}}"))
    after = outcome.graph
    assert str(graph) == before, "the graph that was passed in has changed"
    assert decibels(graph, after) > FEWEST_DECIBELS
    layers = [op for op in after.ops if isinstance(op, Conv2dOp | LinearOp)]
    assert all(op.result.type.dtype is DType.I32 for op in layers)
    assert {op.x.type.dtype.value for op in layers} == {activations}
    assert after.outputs[0].type.dtype is DType.F32
    assert not any(isinstance(op, ObserveOp) for op in after.ops)
    assert structurally_equal(parse(str(after), after.weights), after)
    again = quantized(after, f"quantize{{activations={activations}}}")
    assert {record.name for record in again.report.records if record.changed} <= {"fuse-epilogue", "fuse-elementwise"}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_big_is_stored_as_f32(name: str):
    """After fusion only gates, one number a channel, and outputs are f32."""
    b = builder()
    graph = b.done(NETWORKS[name](b, b.graph.inputs[0]))
    fused = quantized(graph, "quantize").graph
    big = [op.name for op in fused.ops if op.inputs and op.result.type.dtype is DType.F32 and not op.result.is_output]
    assert len(big) == (1 if name == "gate" else 0)
    assert structurally_equal(quantized(graph, "fuse,quantize").graph, fused)
    assert structurally_equal(quantized(graph, f"{STEPS},activation-tables,fuse").graph, fused)


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_compose_through_text(name: str):
    b = builder()
    graph = b.done(NETWORKS[name](b, b.graph.inputs[0]))
    whole = quantized(graph).graph
    for step in STEPS.split(","):
        graph = quantized(graph, step).graph
        graph = parse(str(graph), graph.weights)
    assert structurally_equal(graph, whole)


def test_the_integer_graph_in_text():
    b = builder(1, 4, 6, 6)
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 4))
    after = quantized(b.done(b.conv(b.op(AddOp, b.conv(x, 4), x), 4))).graph
    assert kinds(after) == [
        *("quantize", "conv2d", "dequantize", "quantize"),  # without the ReLU, which saturation does
        *("conv2d", "dequantize", "dequantize", "add", "quantize"),
        *("conv2d", "dequantize"),
    ]
    first, second, third = (op for op in after.ops if isinstance(op, QuantizeOp))
    assert first.attrs.scale != 1
    assert second.attrs == QuantizeOp.attrs_type(scale=1.0)
    assert third.attrs.scale == 1
    assert third.attrs.zero_point > 0


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_layer_computes_what_the_formula_says():
    """One linear layer by hand, in float64."""
    b = builder(5, 7)
    graph = b.done(b.linear(b.graph.inputs[0], 3))
    calibration = data(graph)
    after = quantized(graph, STEPS.replace("bias-correction,", "")).graph
    everything = torch.cat([batch for (batch,) in calibration]).double()
    scale = (everything.max() - everything.min()).item() / 255
    zero_point = round(-everything.min().item() / scale)
    (linear,) = (op for op in graph.ops if isinstance(op, LinearOp))
    weight, bias = (graph.weights[v.op.attrs.id].double() for v in (linear.weight, linear.bias))
    weight_scale = weight.abs().amax(1) / 127
    x = calibration[1][0].double()
    integers = (x / scale).round().clamp(-zero_point, 255 - zero_point)
    sums = integers @ (weight / weight_scale[:, None]).round().T + (bias / (scale * weight_scale)).round()
    torch.testing.assert_close(
        after.evaluate(calibration[1][0])[0].double(), sums * scale * weight_scale, rtol=1e-6, atol=1e-6
    )


def test_weights_have_a_scale_for_each_channel():
    """Channels of very different sizes keep their precision."""
    b = builder()
    scales = torch.logspace(-4, 3, 8).reshape(8, 1, 1, 1)
    weight = b.constant(torch.randn(8, 8, 3, 3, generator=b.generator) * scales)
    graph = b.done(b.op(Conv2dOp, b.graph.inputs[0], weight, None, padding=(1, 1, 1, 1)))
    after = quantized(graph).graph
    for batch in data(graph):
        exact, found = graph.evaluate(*batch)[0], after.evaluate(*batch)[0]
        noise = (exact - found).square().mean((0, 2, 3)) / exact.square().mean((0, 2, 3))
        assert noise.max() < 10 ** (-FEWEST_DECIBELS / 10)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-30])
def test_channels_without_weights_keep_their_bias(size: float):
    b = builder()
    weight = b.constant(torch.full((4, 8, 1, 1), size))
    bias = b.constant(torch.tensor([1.5, -300.0, 0.0, 7e4]))
    after = quantized(b.done(b.op(Conv2dOp, b.graph.inputs[0], weight, bias))).graph
    found = after.evaluate(*data(after)[0])[0].mean((0, 2, 3))
    torch.testing.assert_close(found, torch.tensor([1.5, -300.0, 0.0, 7e4]), rtol=1e-6, atol=1e-6)


def test_bias_correction_removes_the_shift_of_each_channel():
    """Weights that all round the same way, read by numbers that are all positive."""
    b = builder()
    numbers = torch.full((6, 8, 3, 3), 0.5 + 0.4 / 127)
    numbers[:, 0, 0, 0] = 1.0
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8))
    graph = b.done(b.op(Conv2dOp, x, b.constant(numbers), None, padding=(1, 1, 1, 1), location="second"))

    def shift(accuracy: str) -> float:
        after = quantized(graph, f"quantize{{accuracy={accuracy}}}").graph
        off = [after.evaluate(*batch)[0] - graph.evaluate(*batch)[0] for batch in data(graph)]
        return torch.stack(off).mean((0, 1, 3, 4)).abs().max().item()

    assert shift("[bias-correction]") < 0.1 * shift("[]")


def test_bias_correction_runs_once():
    b = builder()
    graph = quantized(b.done(b.conv(b.graph.inputs[0], 4)), "quantize-annotate,quantize-calibrate").graph
    outcome = quantized(graph, "bias-correction,bias-correction")
    assert [record.changed for record in outcome.report.records] == [True, False]
    assert decibels(graph, outcome.graph) > 30
    assert not quantized(b.graph, "bias-correction").report.records[0].changed


def test_errors_are_those_against_the_graph_before_corrections():
    b = builder()
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 4))
    graph = b.done(b.conv(x, 4))
    outcome = quantized(graph, "quantize")
    (line,) = (note for note in record_of(outcome, "quantize-realize").notes if note.startswith("whole graph"))
    assert float(line.split("SQNR ")[1].split()[0]) == pytest.approx(decibels(graph, outcome.graph), abs=0.06)


def test_the_report_tells_errors():
    b = builder()
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 4, location="first"), location="act")
    record = record_of(quantized(b.done(b.conv(x, 4, location="second")), "quantize"), "quantize-realize")
    text = "\n".join(record.notes)
    assert "whole graph: multiply-adds" in text
    assert "output 0: SQNR" in text
    (line,) = (note for note in record.notes if note.startswith("act: SQNR"))
    assert 30 < float(line.split()[2]) < 60


# Compiled -----------------------------------------------------------------------------------------------------------


def test_compiled_code_computes_the_same_integers():
    from tersor.tests.targets.compiled import compiled

    b = builder()
    graph = b.done(residual(b, b.op(MaxPool2dOp, shortcut(b, b.graph.inputs[0]), kernel=(2, 2), stride=(1, 1))))
    integers = run_passes(graph, "quantize", calibration=data(graph))
    program = compiled(integers, "layout", "x86:native")
    for batch in data(graph):
        found = program(*batch)
        assert torch.equal(found if isinstance(found, torch.Tensor) else found[0], integers.evaluate(*batch)[0])


def test_a_layer_without_a_bias_may_stay_in_floating_point():
    """Its third operand may be left out, as in networks whose batch norms stand in front of the convolutions."""
    b = builder()
    x = b.graph.inputs[0]
    weight = b.weight(8, x.shape[1], 3, 3)
    first = b.op(Conv2dOp, x, weight, padding=(1, 1, 1, 1), location="first")
    second = b.op(Conv2dOp, b.op(ReluOp, first), b.weight(8, 8, 1, 1), location="second")
    graph = b.done(second)
    assert [len(op.operands) for op in graph.ops if isinstance(op, Conv2dOp)] == [2, 2]
    after = quantized(graph, "quantize{keep=all,skip=[first]}").graph
    types = [op.result.type.dtype for part in after.parts for op in part.ops if isinstance(op, Conv2dOp)]
    assert types == [DType.F32, DType.I32]
    assert decibels(graph, after) > FEWEST_DECIBELS
