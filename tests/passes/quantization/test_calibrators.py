"""Calibrators against NumPy, their memory, and the pass that feeds them."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tersor.ir import DType, Graph, TensorType, TersorError, TersorWarning, structurally_equal
from tersor.ir.ops import AddOp, ConcatOp, Conv2dOp, EmbeddingOp, LinearOp, MaxPool2dOp, NegOp, ObserveOp, ReluOp, SubOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.quantization.calibrators import parse_calibrator
from tersor.passes.quantization.calibrators.histogram import Histogram
from tersor.passes.quantization.calibrators.mse import squared_errors
from tersor.passes.quantization.calibrators.registry import CALIBRATORS
from tersor.passes.quantization.sample import Sample
from tersor.passes.quantization.scheme import QuantizationStep
from tersor.tests.checks import refusals
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
    bin_width = np.abs(expected).max() / 128
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


@pytest.mark.parametrize("size", [1e3, 1e7, 1e30])
@pytest.mark.parametrize("order", ["first", "last"])
def test_percentile_holds_at_any_scale(size: float, order: str):
    """A single number beyond all others moves the range no more than any other number would."""
    numbers = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 1e-3
    parts = [torch.tensor([size * 1e-3, 0.0]), numbers]
    observer = parse_calibrator("percentile:99.9").observer()
    for part in parts if order == "first" else parts[::-1]:
        observer.observe(part)
    expected = np.percentile(numbers.numpy(), [0.1, 99.9])
    assert observer.range() == pytest.approx(tuple(expected), rel=0.05)


def test_percentile_cuts_one_number_of_few():
    observer = parse_calibrator("percentile:99.99").observer()
    observer.observe(torch.cat([torch.linspace(-1, 1, 99), torch.tensor([1e6])]))
    assert observer.range()[1] == pytest.approx(1, rel=0.01)


def test_percentile_of_100_is_minmax():
    data = batches()
    one, other = (parse_calibrator(name).observer() for name in ("percentile:100", "minmax"))
    for batch in data:
        one.observe(batch)
        other.observe(batch)
    assert one.range() == other.range()


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy", "auto"])
def test_memory_does_not_grow(name: str):
    observer: Any = parse_calibrator(name).observer()
    sizes = set()
    for batch in batches(8, 5.0):
        observer.observe(batch)
        sizes.add(observer._histogram._counts.numel())
    assert len(sizes) == 1


def test_samples_are_bounded():
    sample = Sample()
    for batch in batches(400, growth=1.01):
        sample.add(batch)
    assert sum(one.numel() for one in sample.tensors) <= 2**19
    assert len({one.abs().max().item() for one in sample.tensors}) == len(sample.tensors)
    large = Sample()
    for _ in range(3):
        large.add(torch.zeros(3, 2**20))
    assert [one.shape for one in large.tensors] == [(1, 2**20)]


def rounding_error(numbers: torch.Tensor, covered: tuple[float, float]) -> float:
    step = QuantizationStep.covering(*covered, DType.U8)
    return (step.nearest(numbers.double()) - numbers).square().sum().item()


@pytest.mark.parametrize("kind", ["normal", "cubed", "relu", "relu6"])
def test_mse_is_the_least_error(kind: str):
    """Against an exhaustive search over ranges, on the numbers themselves."""
    numbers = torch.randn(200000, generator=torch.Generator().manual_seed(3))
    if kind == "cubed":
        numbers = numbers**3
    elif kind.startswith("relu"):
        numbers = (numbers * 4).clamp(0, 6 if kind == "relu6" else None)
    observer = parse_calibrator("mse").observer()
    for part in numbers.split(30000):
        observer.observe(part)
    low, high = numbers.min().item(), numbers.max().item()
    best = min(rounding_error(numbers, (low * one, high * one)) for one in torch.linspace(0.3, 1.0, 71).tolist())
    assert rounding_error(numbers, observer.range()) < 1.02 * best
    if kind == "normal":
        assert best < 0.85 * rounding_error(numbers, (low, high))


def test_errors_of_a_histogram_are_those_of_the_numbers():
    numbers = torch.randn(50000, generator=torch.Generator().manual_seed(3)) * 5 + 2
    histogram = Histogram()
    histogram.observe(numbers)
    ranges = [(-3.0, 9.0), (-20.0, 25.0), (0.0, 1.0), (-1e-3, 1e6)]
    found = squared_errors(histogram.distribution(), np.array(ranges))
    assert found == pytest.approx([rounding_error(numbers, one) for one in ranges], rel=0.02)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_entropy_cuts_a_long_tail(scale: float):
    """Few numbers far outside are cut off; a range that nothing is outside of stays nearly whole."""
    generator = torch.Generator().manual_seed(4)
    even = torch.rand(20000, generator=generator) * scale
    observer = parse_calibrator("entropy").observer()
    observer.observe(even)
    assert observer.range()[1] > 0.9 * scale
    observer.observe(torch.tensor([1e4 * scale]))
    low, high = observer.range()
    assert low == pytest.approx(0, abs=0.1 * scale)
    assert 0.9 * scale < high < 3 * scale


def test_entropy_keeps_channels_of_other_sizes():
    """Small channels beside a large one are no reason to cut the large one in half."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(100, 4000, generator=generator) * torch.logspace(-2, 0.5, 100)[:, None]
    observer = parse_calibrator("entropy").observer()
    observer.observe(channels.relu())
    assert observer.range()[1] > 0.6 * channels.max().item()


def test_percentile_of_mostly_zeros_keeps_the_others():
    observer = parse_calibrator("percentile:99").observer()
    observer.observe(torch.cat([torch.zeros(1000), torch.tensor([2.0, 3.0])]))
    assert observer.range() == (0.0, 3.0)


def test_entropy_does_not_count_zeros():
    generator = torch.Generator().manual_seed(4)
    numbers = torch.rand(20000, generator=generator)
    one, other = (parse_calibrator("entropy").observer() for _ in range(2))
    one.observe(numbers)
    other.observe(torch.cat([numbers, torch.zeros(10**6)]))
    assert one.range()[1] == pytest.approx(other.range()[1], rel=1e-6)


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy", "auto"])
@pytest.mark.parametrize("numbers", [[0.0, 1e-42], [3e38, -3e38], [5.0, 5.5], [-2.0, -1.0], [0.0, 0.0]])
def test_odd_numbers_have_a_range(name: str, numbers: list[float]):
    observer = parse_calibrator(name).observer()
    observer.observe(torch.tensor(numbers))
    low, high = observer.range()
    assert torch.tensor(numbers).min().item() <= low <= high <= torch.tensor(numbers).max().item()
    assert type(low) is type(high) is float


def test_names_and_mistakes():
    assert {"auto", "entropy", "minmax", "moving-average", "mse", "percentile"} <= set(CALIBRATORS.names())
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


def wrong(graph: Graph, calibrated: Graph, inputs: torch.Tensor) -> float:
    """Squared error of the graph's output when what the notes are about is rounded as they say."""
    rounded = run_passes(calibrated, "quantize-realize")
    return (rounded.evaluate(inputs)[0] - graph.evaluate(inputs)[0]).square().sum().item()


def test_auto_has_the_least_error_of_the_layer_that_reads():
    """A value whose widest channel is read by weights near zero is cut; one whose widest channel counts is not."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 16, generator=generator)
    inputs[:, 0] *= 50
    for factor in (1e-4, 1.0):
        b = GraphBuilder({"x": TensorType((64, 16))})
        weight = torch.randn(8, 16, generator=generator)
        weight[:, 0] *= factor
        graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.constant(weight), None))
        errors = {}
        for method in ("auto", "minmax", "percentile:99.99", "percentile:99.9", "mse", "entropy"):
            errors[method] = wrong(graph, calibrated(graph, [(inputs,)], method), inputs)
        best = min(error for method, error in errors.items() if method != "auto")
        assert errors["auto"] == pytest.approx(best, rel=1e-6), errors
        (low, high), *_ = ranges(calibrated(graph, [(inputs,)], "auto"))
        assert (high - low < 0.8 * (inputs.max() - inputs.min()).item()) == (factor < 1)


def test_auto_says_what_it_chose():
    manager = PassManager(as_pipeline("quantize-annotate,quantize-calibrate{method=auto}"))
    data = [(torch.randn(SHAPE, generator=torch.Generator().manual_seed(index)),) for index in range(3)]
    outcome = manager.run(small_graph(), calibration=data)
    (note,) = outcome.report.records[-1].notes
    assert note.startswith("3 ranges by auto from 3 batches, ")
    counts = [int(part.split()[0]) for part in note.split(", ")[1:]]
    assert sum(counts) == 3
    assert ranges(outcome.graph)[1] == ranges(outcome.graph)[2]  # pooling moves integers


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
        ([], "calibration data: yields no batch; give at least one batch"),
        (
            [(torch.ones(1, 4, 6, 5),)],
            r"calibration data: batch 0 does not fit: input 'x' must have shape \[1, 4, 6, 6\]",
        ),
        ([(torch.rand(SHAPE),), (torch.rand(SHAPE),) * 3], "calibration data: batch 1 does not fit: .*1 inputs"),
        ([(torch.rand(SHAPE).double(),)], "batch 0 does not fit: input 'x' must be f32"),
        ([(torch.full(SHAPE, torch.nan),)], "batch 0 makes numbers at input 'x' that are not finite"),
        ([(torch.zeros(SHAPE),)] * 2, "makes every number at input 'x' 0; give data that varies, .*skip="),
    ],
)
def test_bad_data(data: list | None, message: str):
    with pytest.raises(TersorError, match=message) as caught:
        calibrated(small_graph(), data)
    assert "\n" not in str(caught.value)


BEHIND = "quantize-annotate{skip=[stem]},quantize-calibrate"


def test_numbers_that_are_not_finite_are_traced_to_their_source():
    """A weight, an input or an op; not the mask, which is infinite on purpose and reaches no layer."""
    b = GraphBuilder({"x": TensorType(SHAPE), "mask": TensorType((1,))})
    stem = b.op(ReluOp, b.conv(b.graph.inputs[0], 4, location="stem"), location="stem.act")
    graph = b.done(b.conv(b.op(ReluOp, b.op(AddOp, stem, stem), location="act"), 3), b.op(NegOp, b.graph.inputs[1]))
    mask = torch.full((1,), -torch.inf)
    x = torch.rand(SHAPE)
    run_passes(graph, BEHIND, calibration=[(x, mask)])
    message = r"batch 1 makes numbers at act that are not finite: they come from input 'x'$"
    with pytest.raises(TersorError, match=message):
        run_passes(graph, BEHIND, calibration=[(x, mask), (x / 0, mask)])
    graph.weights["stem.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(TersorError, match=r"at act that are not finite: they come from weight 'stem.weight'$"):
        run_passes(graph, BEHIND, calibration=[(x, mask)])


def test_a_batch_that_cannot_be_computed_is_named():
    b = GraphBuilder({"ids": TensorType((1, 5), DType.I64)})
    graph = b.done(b.linear(b.op(EmbeddingOp, b.weight(9, 8), b.graph.inputs[0]), 4))
    with pytest.raises(TersorError, match=r"calibration batch 1 cannot be computed: embedding"):
        calibrated(graph, [(torch.zeros(1, 5).long(),), (torch.full((1, 5), 9),)])


@pytest.mark.parametrize("behind", ["", "pool"])
def test_layers_that_read_one_number_only_stay_in_floating_point(behind: str):
    """No range is known that would hold for other data, and so the network is right for any."""
    b = GraphBuilder({"x": TensorType(SHAPE)})
    stem = b.op(ReluOp, b.conv(b.graph.inputs[0], 4, location="stem"), location="stem.act")
    dead = b.op(ReluOp, b.op(SubOp, stem, b.constant(torch.tensor(1e3))), location="dead.act")
    read = b.op(MaxPool2dOp, dead, kernel=(2, 2), stride=(2, 2)) if behind else dead
    graph = b.done(b.conv(read, 3, location="behind"), b.conv(stem, 3, location="alive"))
    data = [(torch.rand(SHAPE),) for _ in range(2)]
    outcome = PassManager(as_pipeline("quantize{accuracy=[]}")).run(graph, calibration=data)
    (reason,) = refusals(outcome)
    pattern = r"quantize-calibrate refused conv2d at 'behind': calibration data makes every number at \S+ 0$"
    assert re.match(pattern, reason)
    ops = [op for part in outcome.graph.parts for op in part.ops]
    layers = {op.location: op.result.type.dtype for op in ops if isinstance(op, Conv2dOp)}
    assert layers == {"stem": DType.I32, "behind": DType.F32, "alive": DType.I32}
    assert torch.equal(outcome.graph.evaluate(*data[0])[0], graph.evaluate(*data[0])[0])


@pytest.mark.parametrize("sizes", [[1.0] * 4 + [100.0] * 4, [5.0, 4.0, 0.1, 0.2], [0.0] * 2 + [1.0] * 3])
def test_drifting_data_is_named(sizes: list[float]):
    generator = torch.Generator().manual_seed(4)
    data = [(size * torch.rand(SHAPE, generator=generator),) for size in sizes]
    with pytest.warns(TersorWarning, match=r"drifts: numbers at input 'x' reach .* give both one scale, or shuffle"):
        calibrated(small_graph(), data)


@pytest.mark.parametrize("sizes", [[1.0, 100.0] * 4, [1.0, 1.5, 3.0, 4.0], [1.0, 100.0]])
def test_shuffled_data_and_a_few_batches_do_not_drift(sizes: list[float]):
    generator = torch.Generator().manual_seed(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated(small_graph(), [(size * torch.rand(SHAPE, generator=generator),) for size in sizes])
