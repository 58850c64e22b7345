"""Calibrators against NumPy, their memory, and the pass that feeds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.ir import Graph, TensorType, TersorError, structurally_equal
from tersor.ir.ops import ConcatOp, MaxPool2dOp, NegOp, ObserveOp, ReluOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.quantization.calibrators import parse_calibrator
from tersor.passes.quantization.calibrators.registry import CALIBRATORS
from tersor.tests.random_graphs import GraphBuilder

SHAPE = (1, 4, 6, 6)


def batches(count: int = 5, growth: float = 1.7) -> list[torch.Tensor]:
    """Normal numbers whose spread grows from batch to batch, so that ranges have to."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3000, generator=generator) * growth**index + 0.3 for index in range(count)]


def ranges(graph: Graph) -> list[tuple[float, float]]:
    return [(op.attrs.low, op.attrs.high) for op in graph.ops if isinstance(op, ObserveOp)]


def small_graph() -> Graph:
    b = GraphBuilder({"x": TensorType(SHAPE)})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 4), location="act")
    pooled = b.op(MaxPool2dOp, x, kernel=(2, 2), stride=(2, 2))
    return b.done(b.conv(pooled, 5))


def calibrated(graph: Graph, data: list | None, method: str = "minmax") -> Graph:
    return run_passes(graph, f"quantize-annotate,quantize-calibrate{{method={method}}}", calibration=data)


# Calibrators ----------------------------------------------------------------------------------------------------------


def test_minmax():
    observer = parse_calibrator("minmax").observer()
    data = batches()
    for batch in data:
        observer.observe(batch)
    everything = torch.cat(data)
    assert observer.range() == (everything.min().item(), everything.max().item())


def test_moving_average():
    observer = parse_calibrator("moving-average:0.75").observer()
    low = high = None
    for batch in batches():
        observer.observe(batch)
        a, b = batch.min().item(), batch.max().item()
        low, high = (a, b) if low is None else (0.75 * low + 0.25 * a, 0.75 * high + 0.25 * b)
    assert observer.range() == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("growth", [0.5, 1.0, 1.7, 30.0])
def test_percentile(percent: float, growth: float):
    """As near to NumPy's as a bin is wide, even if the first batches were much smaller than the last."""
    observer = parse_calibrator(f"percentile:{percent}").observer()
    data = batches(growth=growth)
    for batch in data:
        observer.observe(batch)
    everything = torch.cat(data).double().numpy()
    expected = np.percentile(everything, [100 - percent, percent])
    bin_width = np.abs(everything).max() / 1024
    gap = np.abs(np.sort(everything)[[-2, 1]] - np.sort(everything)[[-1, 0]]).max()
    assert np.abs(np.array(observer.range()) - expected).max() <= bin_width + gap


def test_percentile_cuts_an_outlier_and_keeps_what_all_numbers_share():
    observer = parse_calibrator("percentile:99.9").observer()
    numbers = torch.rand(10000, generator=torch.Generator().manual_seed(0))
    numbers[17] = 50.0
    observer.observe(numbers)
    low, high = observer.range()
    assert low == pytest.approx(0, abs=0.1)
    assert 0.9 < high < 1.1


def test_percentile_of_100_is_minmax():
    data = batches()
    one, other = (parse_calibrator(name).observer() for name in ("percentile:100", "minmax"))
    for batch in data:
        one.observe(batch)
        other.observe(batch)
    assert one.range() == other.range()


def test_memory_does_not_grow():
    observer = parse_calibrator("percentile").observer()
    sizes = set()
    for batch in batches(8, 5.0):
        observer.observe(batch)
        sizes.add(observer._counts.size)
    assert len(sizes) == 1


def test_names_and_mistakes():
    assert {"minmax", "moving-average", "percentile"} <= set(CALIBRATORS.names())
    assert str(parse_pipeline("quantize-calibrate{method=percentile:99.9}")) == (
        "quantize-calibrate{method=percentile:99.9}"
    )
    for text, message in (
        ("minmaxx", "unknown calibrator 'minmaxx'; did you mean 'minmax'"),
        ("minmax:3", "takes no number"),
        ("percentile:high", "expected a number"),
        ("percentile:20", "above 50"),
        ("moving-average:1", "below 1"),
    ):
        with pytest.raises(PipelineError, match=message):
            parse_pipeline(f"quantize-calibrate{{method={text}}}")


# The pass -------------------------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_values_and_shared_across_moves():
    graph = small_graph()
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(SHAPE, generator=generator) * (index + 1),) for index in range(3)]
    after = calibrated(graph, data)
    everything = torch.cat([batch for (batch,) in data])
    relu = next(op.result for op in graph.ops if isinstance(op, ReluOp))
    probe = graph.clone()
    probe.outputs = (probe.ops[graph.ops.index(relu.op)].result,)
    highest = max(probe.evaluate(*batch)[0].max().item() for batch in data)
    assert ranges(after) == [(everything.min().item(), everything.max().item()), (0.0, highest), (0.0, highest)]
    assert all(torch.equal(after.evaluate(*one)[0], graph.evaluate(*one)[0]) for one in data)


def test_a_concatenation_has_one_range():
    b = GraphBuilder({"x": TensorType(SHAPE)})
    parts = [b.conv(b.graph.inputs[0], 4) for _ in range(2)]
    after = calibrated(b.done(b.conv(b.op(ConcatOp, *parts, axis=1), 4)), [(torch.randn(SHAPE),)])
    assert len(set(ranges(after)[1:])) == 1
    assert len(ranges(after)) == 4


def test_calibrating_twice_changes_nothing():
    data = [(torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)),)]
    after = calibrated(small_graph(), data)
    outcome = PassManager(as_pipeline("quantize-annotate,quantize-calibrate")).run(after, calibration=data)
    assert [record.changed for record in outcome.report.records] == [False, False]
    assert structurally_equal(outcome.graph, after)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "needs calibration data: give at least one batch"),
        ([], "needs calibration data: give at least one batch"),
        ([(torch.ones(2, 4, 6, 6),)], r"calibration batch 0 does not fit: input 'x' must have shape \[1, 4, 6, 6\]"),
        (
            [(torch.rand(SHAPE),), (torch.rand(SHAPE), torch.rand(SHAPE))],
            "calibration batch 1 does not fit: .*1 inputs",
        ),
        ([(torch.rand(SHAPE).double(),)], "batch 0 does not fit: input 'x' must be f32"),
        ([(torch.full(SHAPE, torch.nan),)], "batch 0 makes numbers at input 'x' that are not finite"),
        ([(torch.zeros(SHAPE),)] * 2, "makes every number at input 'x' 0; give data that varies, .*skip="),
    ],
)
def test_bad_data(data: list | None, message: str):
    with pytest.raises(TersorError, match=message) as caught:
        calibrated(small_graph(), data)
    assert "\n" not in str(caught.value)


def test_a_constant_activation_is_named_with_its_layer():
    b = GraphBuilder({"x": TensorType(SHAPE)})
    shifted = b.op(ReluOp, b.conv(b.graph.inputs[0], 4, bias=False), location="stem.act")
    dead = b.op(ReluOp, b.op(NegOp, shifted), location="dead.act")
    with pytest.raises(TersorError, match=r"makes every number at dead\.act 0"):
        calibrated(b.done(b.conv(dead, 3)), [(torch.rand(SHAPE),)])
