"""``equalize-concat``: parts of a concatenation that differ much in size."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import Graph, TersorError, Value, structurally_equal
from tersor.ir.ops import (
    AddOp,
    ClampOp,
    ConcatOp,
    Conv2dOp,
    HardSwishOp,
    MaxPool2dOp,
    MulOp,
    ReluOp,
    SigmoidOp,
    SoftmaxOp,
)
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.tests.checks import kinds, refusals
from tersor.tests.passes.quantization.networks import builder, data, decibels, quantized
from tersor.tests.random_graphs import GraphBuilder

PASS = "equalize-concat"


def sized(b: GraphBuilder, x: Value, channels: int, size: float) -> Value:
    weight = torch.randn(channels, x.shape[1], 3, 3, generator=b.generator) * size / 8
    return b.op(Conv2dOp, x, b.constant(weight), b.constant(torch.zeros(channels)), padding=(1, 1, 1, 1))


def last(b: GraphBuilder, joined: Value, sizes: list[tuple[int, float]]) -> Value:
    """A layer whose weights are large where the parts are small, so that all count alike."""
    weight = torch.cat([torch.randn(6, channels, 3, 3, generator=b.generator) / size for channels, size in sizes], 1)
    return b.op(Conv2dOp, joined, b.constant(weight), b.weight(6), padding=(1, 1, 1, 1), location="last")


SIZES = [(8, 100.0), (4, 1.0), (5, 7.0)]


def plain(b: GraphBuilder, x: Value) -> Value:
    parts = [b.op(ReluOp, sized(b, x, *one)) for one in SIZES]
    return last(b, b.op(ConcatOp, *parts, axis=1), SIZES)


def pooled(b: GraphBuilder, x: Value) -> Value:
    """As in SqueezeNet."""
    parts = [b.op(ClampOp, sized(b, x, *one), min=0.0, max=2 * one[1]) for one in SIZES]
    joined = b.op(MaxPool2dOp, b.op(ConcatOp, *parts, axis=1), kernel=(2, 2), stride=(2, 2))
    return b.op(AddOp, last(b, joined, SIZES), last(b, joined, SIZES))


def gated(b: GraphBuilder, x: Value) -> Value:
    """Parts whose making no factor passes through."""
    parts = [b.op(HardSwishOp, sized(b, x, 8, 100.0)), b.op(SigmoidOp, sized(b, x, 4, 1.0))]
    return last(b, b.op(ConcatOp, *parts, axis=1), SIZES[:2])


NETWORKS = {"plain": plain, "pooled": pooled, "gated": gated}


def made(name: str) -> Graph:
    b = builder()
    return b.done(NETWORKS[name](b, b.graph.inputs[0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_keep_their_precision(name: str):
    graph = made(name)
    without = decibels(graph, quantized(graph, "quantize{accuracy=[bias-correction]}").graph)
    found = decibels(graph, quantized(graph, "quantize").graph)
    assert without < 20
    assert found > 33


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_a_second_run_changes_nothing(name: str):
    graph = made(name)
    outcome = PassManager(as_pipeline(f"{PASS},{PASS}")).run(graph, calibration=data(graph))
    assert [record.changed for record in outcome.report.records] == [True, False]
    assert decibels(graph, outcome.graph) > 100
    assert outcome.report.records[0].notes == ("1 of 1 concatenations have parts of different sizes",)
    products = sum(isinstance(op, MulOp) for op in outcome.graph.ops)
    assert products == (1 if name == "gated" else 0)  # else the weights take the factors
    other = torch.randn(graph.inputs[0].shape, generator=torch.Generator().manual_seed(8)) * 4
    exact, found = graph.evaluate(other)[0], outcome.graph.evaluate(other)[0]
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_a_concatenation_still_only_copies():
    names = kinds(quantized(made("plain"), "quantize-annotate,quantize-calibrate,quantize-realize").graph)
    assert (
        kinds(quantized(made("plain"), f"{PASS},quantize-annotate,quantize-calibrate,quantize-realize").graph) == names
    )


def test_parts_of_one_size_are_left_alone():
    b = builder()
    parts = [sized(b, b.graph.inputs[0], 4, size) for size in (1.0, 1.3)]
    graph = b.done(last(b, b.op(ConcatOp, *parts, axis=1), [(4, 1.0), (4, 1.3)]))
    assert structurally_equal(run_passes(graph, PASS, calibration=data(graph)), graph)


def test_what_is_refused():
    b = builder()
    x = b.graph.inputs[0]
    small, large = sized(b, x, 4, 1.0), sized(b, x, 4, 100.0)
    read = b.op(ConcatOp, small, large, axis=1, location="read")
    shared = b.op(ConcatOp, sized(b, x, 4, 1.0), large, axis=1, location="shared")
    outputs = [b.op(SoftmaxOp, read, axis=1), last(b, shared, [(4, 1.0), (4, 100.0)])]
    graph = b.done(*outputs)
    outcome = PassManager(as_pipeline(PASS)).run(graph, calibration=data(graph))
    assert refusals(outcome) == [
        f"{PASS} refused concat at 'read': something other than a layer with constant weights reads it",
        f"{PASS} refused concat at 'shared': a part of it is read elsewhere too",
    ]
    assert structurally_equal(outcome.graph, graph)
    with pytest.raises(TersorError, match=f"run {PASS} before quantize-annotate"):
        run_passes(graph, f"quantize-annotate,{PASS}", calibration=data(graph))
    with pytest.raises(TersorError, match="needs calibration data"):
        run_passes(made("plain"), PASS)
