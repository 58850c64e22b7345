"""``quantize-weights``: what it makes, how near that is, what it refuses, and what the referee decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tersor
from tersor.ir import DType, Graph, TensorType, TersorError, Value, load_ir, save_ir, structurally_equal
from tersor.ir.ops import AddOp, LinearOp, PackedLinearOp, ReluOp
from tersor.ir.ops.packed import spread
from tersor.passes import PassManager, PassOutcome, as_pipeline, run_passes
from tersor.passes.quantization.weight_groups import (
    best_scales,
    compensated_integers,
    largest_scales,
    nearest_integers,
)
from tersor.targets import resolve_target
from tersor.tests.checks import kinds, record_of, refusals
from tersor.tests.passes.lowrank.planted import Clock
from tersor.tests.passes.quantization.networks import data, decibels
from tersor.tests.random_graphs import GraphBuilder
from tersor.tests.targets.compiled import check

FORMS = ["bits=4", "bits=8", "bits=4,activations=i8", "bits=8,activations=i8", "bits=8,activations=i8,group=0"]


def dense(b: GraphBuilder, x: Value, outputs: int, location: str) -> Value:
    return b.op(LinearOp, x, b.weight(outputs, x.shape[-1]), b.weight(outputs), location=location)


def network(rows: int = 48) -> Graph:
    """Two layers, of which the second and a third read inputs that depend on each other."""
    b = GraphBuilder({"x": TensorType((rows, 64))})
    x = dense(b, b.graph.inputs[0], 96, "first")
    x = b.op(ReluOp, x)
    left, right = (dense(b, x, 40, name) for name in ("left", "right"))
    return b.done(b.op(AddOp, left, right))


def packed(graph: Graph, options: str, pipeline: str = "quantize-weights", **context: Any) -> PassOutcome:
    return PassManager(as_pipeline(f"{pipeline}{{{options}}}")).run(graph, calibration=data(graph), **context)


def layers(graph: Graph) -> list[PackedLinearOp]:
    parts = (op for part in graph.parts for op in part.ops)
    return [op for op in parts if isinstance(op, PackedLinearOp)]


@pytest.mark.parametrize("method", ["round", "gptq"])
def test_weights_are_packed(method: str):
    graph = network()
    outcome = packed(graph, f"method={method},group=32")
    assert kinds(outcome.graph) == ["packed_linear", "relu", "packed_linear", "packed_linear", "add"]
    first, *_ = layers(outcome.graph)
    assert (first.weight.type, first.scale.type) == (TensorType((96, 32), DType.I8), TensorType((96, 2)))
    assert first.location == "first"
    (note,) = record_of(outcome, "quantize-weights").notes
    assert note.startswith(f"3 layers with weights of 4 bits: {4 * (64 + 80) * 96} -> {144 * 96 // 2 + 4 * 432} bytes;")
    again = packed(outcome.graph, f"method={method}")
    assert structurally_equal(again.graph, outcome.graph)
    assert record_of(again, "quantize-weights").notes == ("no linear layer has a weight of f32",)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_stay_near(form: str):
    """A step of 4 bits is an eighth of a group's largest number, one of 8 bits an 128th."""
    graph = network()
    outcome = packed(graph, f"{form},method=round")
    assert decibels(graph, outcome.graph) > (12 if "bits=4" in form else 32)


def test_gptq_is_better_than_rounding():
    graph = network()
    for form in ("bits=4", "bits=4,activations=i8", "bits=4,group=0"):
        better, worse = (decibels(graph, packed(graph, f"{form},method={one}").graph) for one in ("gptq", "round"))
        assert better > worse + 2


def test_the_mean_of_outputs_is_kept():
    graph = network()
    batches = torch.cat([batch[0] for batch in data(graph)])
    first = layers(packed(graph, "method=gptq").graph)[0]
    weight, bias = (graph.weights[value.op.attrs.id] for value in (graph.ops[2].weight, graph.ops[2].bias))
    exact = torch.nn.functional.linear(batches, weight, bias)
    assert first.graph is not None
    constants = [first.graph.weights[value.op.attrs.id] for value in (first.weight, first.scale, first.bias)]
    torch.testing.assert_close(first.evaluate(batches, *constants).mean(0), exact.mean(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_numbers(form: str):
    """One row and several, with and without the shortcut fused behind the layer."""
    for rows in (1, 5):
        graph = packed(network(rows), f"{form},method=round", "O3,quantize-weights").graph
        check(graph, data(graph)[0][0], pipeline="fuse,layout")


def test_layers_that_read_one_value_share_its_rows():
    outcome = packed(network(), "method=round,activations=i8")
    assert kinds(outcome.graph).count("quantize_by") == 2
    assert kinds(outcome.graph).count("packed_linear") == 3


def test_one_scale_for_each_output_needs_no_groups():
    outcome = packed(network(), "method=round,bits=8,group=0,activations=i8")
    assert [op.result.type.dtype for op in outcome.graph.ops if isinstance(op, LinearOp)] == [DType.I32] * 3
    assert not layers(outcome.graph)


def test_it_becomes_a_module(tmp_path):
    graph = packed(network(), "method=round,activations=i8").graph
    x = data(graph)[0][0]
    (expected,) = graph.evaluate(x)
    module = graph.to_torch()
    torch.testing.assert_close(module(x), expected)
    program = torch.export.export(module, (x,))
    (again,) = tersor.from_torch(program).evaluate(x)
    assert torch.equal(again, expected)
    save_ir(graph, tmp_path / "net.ir")
    assert structurally_equal(load_ir(tmp_path / "net.ir"), graph)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_written_as_onnx(form: str, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = packed(network(), f"{form},method=round" + ("" if "group" in form else ",group=32")).graph
    x = data(graph)[0][0]
    graph.to_onnx(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"x": x.numpy()})
    (expected,) = graph.evaluate(x)
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-3)


def test_groups_of_two_lengths_are_not_written_as_onnx(tmp_path):
    graph = packed(network(), "method=round,group=40").graph
    with pytest.raises(TersorError, match="packed_linear at first: a last group of inputs that is shorter"):
        graph.to_onnx(tmp_path / "net.onnx")


# What stays as it is --------------------------------------------------------------------------------------------------


def test_refusals():
    b = GraphBuilder({"x": TensorType((4, 24)), "w": TensorType((8, 24))})
    x, w = b.graph.inputs
    odd = dense(b, dense(b, x, 20, "even"), 16, "odd")
    broken = b.op(LinearOp, x, b.constant(torch.full((16, 24), float("inf"))), location="broken")
    computed = b.op(LinearOp, x, w, location="computed")
    skipped = dense(b, x, 16, "head.0")
    graph = b.done(odd, broken, computed, skipped)
    outcome = packed(graph, "method=round,skip=[head*]")
    assert refusals(outcome) == [
        "quantize-weights refused linear at 'odd': it has 20 inputs, which is no multiple of 8",
        "quantize-weights refused linear at 'broken': its weight or bias has numbers that are not finite",
        "quantize-weights refused linear at 'computed': its weight or bias is computed at run time, or not loaded",
        "quantize-weights refused linear at 'head.0': it is to be skipped",
    ]
    assert [op.location for op in layers(outcome.graph)] == ["even"]


def test_errors():
    graph = network()
    with pytest.raises(TersorError, match="skip=tail matches no layer; layers have names such as first"):
        packed(graph, "method=round,skip=[tail]")
    with pytest.raises(TersorError, match="needs calibration data"):
        run_passes(graph, "quantize-weights")
    with pytest.raises(TersorError, match="run quantize-weights before quantize-annotate"):
        run_passes(graph, "quantize-annotate,quantize-weights{method=round}")
    with pytest.raises(TersorError, match="no kernels for integers of few bits; leave out quantize-weights"):
        run_passes(graph, "quantize-weights{method=round}", target=resolve_target("cuda:sm_90"))
    for options, message in {
        "bits=3": "bits must be 4 or 8, not 3",
        "group=20": "group must be a multiple of 8, not 20",
        "damping=0": "damping must be above 0, not 0",
        "activations=u8": "activations must be f32 or i8, not u8",
    }.items():
        with pytest.raises(TersorError, match=message):
            packed(graph, options)


def test_the_referee_keeps_what_is_faster():
    faster, slower = Clock(0.5), Clock(2.0)
    outcome = packed(network(), "method=round", latency=faster)
    assert len(layers(outcome.graph)) == 3
    assert any("first: multiply-adds" in note for note in record_of(outcome, "quantize-weights").notes)
    outcome = packed(network(), "method=round", latency=slower)
    assert kinds(outcome.graph) == kinds(network())
    notes = record_of(outcome, "quantize-weights").notes
    assert sum("undone, not faster" in note for note in notes) == 4
    assert len(layers(packed(network(), "method=round,keep=all", latency=Clock(2.0)).graph)) == 3


class Together(Clock):
    """A layer alone is slower with a packed weight, and several are faster."""

    def compare(self, before: Graph, after: Graph):
        self.factor = 0.5 if len(kinds(after)) > 1 else 2.0
        return super().compare(before, after)


def test_layers_may_be_faster_together():
    outcome = packed(network(), "method=round", latency=Together())
    assert len(layers(outcome.graph)) == 3
    assert any("alone not faster, with the others it is" in one for one in record_of(outcome, "quantize-weights").notes)


# Scales and integers --------------------------------------------------------------------------------------------------


def weights(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_number_of_a_group_is_exact(bits: int):
    weight = weights(6, 20)
    weight[2, 8:16] = 0.0
    scale = largest_scales(weight, bits, 8)
    assert scale.shape == (6, 3)
    integers = nearest_integers(weight, scale, bits, 8)
    numbers = integers * spread(scale, 8, 20)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        largest = weight[:, part].abs().argmax(1, keepdim=True)
        torch.testing.assert_close(numbers[:, part].gather(1, largest), weight[:, part].gather(1, largest))
    assert bool((integers[2, 8:16] == 0).all())
    assert integers.min() == -(1 << bits - 1)


def test_the_best_scales_have_the_least_error():
    weight, importance = weights(300, 32), torch.rand(32, generator=torch.Generator().manual_seed(1)) ** 4

    def error(scale: torch.Tensor) -> torch.Tensor:
        numbers = nearest_integers(weight, scale, 4, 16) * spread(scale, 16, 32)
        return ((numbers - weight).square() * importance).reshape(300, 2, 16).sum(2)

    best, covering = (error(one) for one in (best_scales(weight, importance, 4, 16), largest_scales(weight, 4, 16)))
    assert bool((best <= covering * 1.0001).all())
    assert best.sum() < 0.8 * covering.sum()


def test_compensation_makes_correlated_errors_small():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    covariance = (rows.T @ rows / len(rows)).double()
    weight, scale = weights(16, 32).double(), largest_scales(weights(16, 32), 4, 16)
    factors = spread(scale, 16, 32)
    found = compensated_integers(weight, factors, covariance, 4, 0.01)
    assert torch.equal(found, found.round())
    assert found.min() >= -8 and found.max() <= 7

    def error(integers: torch.Tensor) -> float:
        off = integers * factors - weight
        return ((off @ covariance) * off).sum().item()

    assert error(found) < 0.6 * error(nearest_integers(weight, scale, 4, 16))
