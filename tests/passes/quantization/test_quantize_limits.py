"""What ``quantize`` leaves in floating point, refuses, and asks the referee."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch

from tersor.ir import DType, Graph, Op, TersorError, ops, structurally_equal
from tersor.ir.ops import AvgPool2dOp, Conv2dOp, DequantizeOp, FusedOp, QuantizeOp, ReluOp, SoftmaxOp
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.passes.matching import numbers
from tersor.targets import resolve_target
from tersor.tests.checks import kinds, record_of, refusals
from tersor.tests.passes.quantization.networks import FEWEST_DECIBELS, STEPS, builder, data, decibels, quantized

# What stays in floating point -----------------------------------------------------------------------------------------


def test_skipped_layers_stay():
    b = builder()
    x = b.conv(b.conv(b.graph.inputs[0], 8, location="body.0"), 8, location="body.1")
    outcome = quantized(b.done(b.conv(x, 4, location="head")), STEPS.replace("annotate", "annotate{skip=[body.1,he*]}"))
    dtypes = [op.result.type.dtype for op in outcome.graph.ops if isinstance(op, Conv2dOp)]
    assert dtypes == [DType.I32, DType.F32, DType.F32]
    assert refusals(outcome) == [
        "quantize-annotate refused conv2d at 'body.1': it is to be skipped",
        "quantize-annotate refused conv2d at 'head': it is to be skipped",
    ]
    with pytest.raises(TersorError, match=r"skip=tail matches no layer; layers have names such as body\.0"):
        quantized(b.graph, "quantize{skip=[tail]}")


def test_a_skipped_layer_stays_beside_one_that_reads_the_same():
    b = builder()
    x = b.conv(b.graph.inputs[0], 8, location="first")
    both = b.op(ops.AddOp, b.conv(x, 8, location="body"), b.conv(x, 8, location="shortcut"))
    graph = b.done(both)
    outcome = quantized(graph, STEPS.replace("annotate", "annotate{skip=[shortcut]}"))
    dtypes = {op.location: op.result.type.dtype for op in outcome.graph.ops if isinstance(op, Conv2dOp)}
    assert dtypes == {"first": DType.I32, "body": DType.I32, "shortcut": DType.F32}
    noted = run_passes(graph, "quantize-annotate{skip=[shortcut]}")
    assert structurally_equal(run_passes(noted, "quantize-annotate{skip=[shortcut]}"), noted)


def test_sums_that_may_overflow_are_refused():
    b = builder(1, 40000)
    outcome = quantized(b.done(b.linear(b.graph.inputs[0], 2)))
    assert refusals(outcome) == [
        "quantize-annotate refused linear at 'fc': sums of 40000 products may not fit into i32"
    ]
    assert kinds(outcome.graph) == ["linear"]


def test_ops_that_know_no_integers_read_numbers():
    b = builder()
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8))
    graph = b.done(b.conv(x, 4), b.op(SoftmaxOp, x, axis=1))
    after = quantized(graph).graph
    (softmax,) = (op for op in after.ops if isinstance(op, SoftmaxOp))
    assert isinstance(softmax.x.op, DequantizeOp)
    assert decibels(graph, after) > FEWEST_DECIBELS


def test_outputs_keep_their_numbers():
    """An output that a layer reads too is returned as it was before rounding."""
    b = builder()
    x = b.conv(b.graph.inputs[0], 8)
    after = quantized(b.done(x, b.conv(x, 4))).graph
    assert not isinstance(after.outputs[0].op.x.op, QuantizeOp)


def test_counted_padding_around_a_zero_point_is_averaged_in_floating_point():
    b = builder()
    mean = b.op(AvgPool2dOp, b.conv(b.graph.inputs[0], 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    graph = b.done(b.conv(mean, 4))
    after = quantized(graph).graph
    (pool,) = (op for op in after.ops if isinstance(op, AvgPool2dOp))
    assert pool.x.type.dtype is DType.F32
    assert decibels(graph, after) > FEWEST_DECIBELS


# The referee ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    before: float
    after: float
    noise: float = 0.02


class StubLatency:
    """Integers are faster, but for layers with ``slow`` output channels; these ``together`` with the others as told."""

    def __init__(self, slow: int = 0, whole: float = 0.5, together: float = 1.0) -> None:
        self.slow, self.whole, self.together = slow, whole, together

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        pass

    def graph_seconds(self, graph: Graph) -> float:
        raise NotImplementedError

    def op_seconds(self, op: Op) -> float:
        raise NotImplementedError

    def compare(self, before: Graph, after: Graph) -> Times:
        if before.inputs[0].type.dtype is after.inputs[0].type.dtype:
            is_quantized = any(isinstance(op, QuantizeOp) for op in before.ops)
            return Times(1e-3, (self.together if is_quantized else self.whole) * 1e-3)
        return Times(1e-3, 2e-3 if before.outputs[0].shape[1] == self.slow else 0.5e-3)


def three_layers() -> Graph:
    b = builder()
    x = b.conv(b.graph.inputs[0], 8, location="a")
    return b.done(b.conv(b.op(ReluOp, b.conv(b.op(ReluOp, x), 9, location="b")), 10, location="c"))


def test_layers_that_are_not_faster_stay():
    graph = three_layers()
    outcome = quantized(graph, latency=StubLatency(slow=9))
    dtypes = [op.result.type.dtype for op in outcome.graph.ops if isinstance(op, Conv2dOp)]
    assert dtypes == [DType.I32, DType.F32, DType.I32]
    assert sum(isinstance(op, QuantizeOp) for op in outcome.graph.ops) == 2  # none before the one that stays
    assert any(note.startswith("b undone, not faster") for note in outcome.report.records[-1].notes)
    everything = quantized(graph, f"{STEPS}{{keep=all}}", latency=StubLatency(slow=9)).graph
    assert structurally_equal(everything, quantized(graph).graph)


def test_layers_that_are_not_faster_alone_follow_their_neighbours():
    outcome = quantized(three_layers(), latency=StubLatency(slow=9, together=0.9))
    assert structurally_equal(outcome.graph, quantized(three_layers()).graph)
    notes = outcome.report.records[-1].notes
    (layer,) = (note for note in notes if note.startswith("b: "))
    assert layer.endswith("1 -> 2 ms (2.000); alone not faster, with its neighbours it is")
    assert any(re.match(r"layers that alone are not faster \(1\): .* 1 -> 0.9 ms", note) for note in notes)


@pytest.mark.parametrize("accuracy", ["", "bias-correction", "gptq"])
def test_a_layer_that_stays_has_the_numbers_that_it_had(accuracy: str):
    """Accuracy passes prepare a layer for integers; in floating point it would be wrong by as much."""
    graph = three_layers()
    outcome = quantized(graph, f"quantize{{accuracy=[{accuracy}]}}", latency=StubLatency(slow=9))
    stays = next(op for op in outcome.graph.ops if isinstance(op, FusedOp) and op.location == "b")
    assert stays.body is not None
    assert next(op for op in stays.body.ops if isinstance(op, Conv2dOp)).result.type.dtype is DType.F32
    before = next(op for op in graph.ops if op.location == "b" and isinstance(op, Conv2dOp))
    for mine, other in zip(stays.inputs[1:], before.inputs[1:], strict=True):
        assert torch.equal(numbers(mine), numbers(other))


@pytest.mark.parametrize("accuracy", ["", "bias-correction", "gptq", "equalize-concat,adaround"])
def test_a_graph_that_would_be_slower_stays_whole(accuracy: str):
    graph = three_layers()
    outcome = quantized(graph, f"quantize{{accuracy=[{accuracy}]}}", latency=StubLatency(whole=1.5))
    assert kinds(outcome.graph) == kinds(run_passes(graph, "fuse"))
    for batch in data(graph):
        assert torch.equal(outcome.graph.evaluate(*batch)[0], graph.evaluate(*batch)[0])
    assert any(note.startswith("whole graph undone, slower") for note in record_of(outcome, "quantize-realize").notes)


# Order and targets ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_quantized_says_why():
    b = builder()
    graph = b.done(b.conv(b.graph.inputs[0], 16))
    with pytest.raises(TersorError, match=r"layouts are chosen already; run quantize-annotate before layout"):
        quantized(graph, "layout{block=16},quantize")
    with pytest.raises(TersorError, match=r"the range of input 'x' is not known; run quantize-calibrate first"):
        quantized(graph, "quantize-annotate,quantize-realize")
    with pytest.raises(TersorError, match=r"cuda:sm_90 has no kernels for 8-bit integers"):
        quantized(graph, target=resolve_target("cuda:sm_90"))
    with pytest.raises(TersorError, match=r"activations must be u8 or i8, not f32"):
        quantized(graph, "quantize{activations=f32}")
    with pytest.raises(TersorError, match=r"unknown pass 'bias-corection'; did you mean 'bias-correction'"):
        quantized(graph, "quantize{accuracy=[bias-corection]}")


def test_batch_norms_must_be_folded():
    b = builder()
    statistics = (b.weight(8), b.weight(8, positive=True), b.weight(8), b.weight(8))
    graph = b.done(b.op(ops.BatchNormOp, b.conv(b.graph.inputs[0], 8), *statistics))
    with pytest.raises(TersorError, match=r"batch_norm is not folded into the layer before it; put O2 or O3 before"):
        quantized(graph)
    assert "quantize" in kinds(quantized(graph, "O2,quantize").graph)


def test_nothing_to_quantize():
    b = builder()
    graph = b.done(b.op(ReluOp, b.graph.inputs[0]))
    for pipeline in ("quantize", *STEPS.split(",")):
        assert not quantized(graph, pipeline).report.records[0].changed


def test_bisection_leaves_a_graph_that_runs():
    """Whatever number of rewrites is allowed, the graph is whole and computes something near."""
    graph = three_layers()
    pipeline = "quantize{accuracy=[]}"
    total = len(quantized(graph, pipeline).report.records[0].applied)
    for limit in range(total + 1):
        manager = PassManager(as_pipeline(pipeline), bisect_limit=limit)
        try:
            after = manager.run(graph, calibration=data(graph)).graph
        except TersorError as error:
            assert "is not known; run quantize-calibrate first" in str(error)
            continue
        assert decibels_or_equal(graph, after) > 20, limit


def decibels_or_equal(exact: Graph, approximate: Graph) -> float:
    same = all(torch.equal(exact.evaluate(*one)[0], approximate.evaluate(*one)[0]) for one in data(exact))
    return math.inf if same else decibels(exact, approximate)


def test_weights_of_fewer_bits():
    b = builder()
    graph = b.done(b.conv(b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 8)), 4))
    for pipeline in ("quantize{weight_bits=4}", "quantize{weight_bits=4,accuracy=[gptq]}"):
        after = quantized(graph, pipeline).graph
        integers = [tensor for tensor in after.weights.values() if tensor.dtype is torch.int8]
        assert [int(one.abs().max()) for one in integers] == [7, 7]
        assert 8 < decibels(graph, after) < 30
    with pytest.raises(TersorError, match=r"weight_bits must be 2 to 8, not 1"):
        quantized(graph, "quantize{weight_bits=1}")
