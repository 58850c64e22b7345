"""Scans of sensitivity: their figures, what limits them, and every refusal; and that passes read them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.compression.sensitivity import sweep
from tersor.compression.sensitivity.axes import AxisContext, make_axis
from tersor.compression.sensitivity.chart import CurvesChart
from tersor.compression.sensitivity.sweep import errors
from tersor.compression.sensitivity.variants import AxisPlan, Variant
from tersor.evaluation import Model
from tersor.ir import Graph, TensorType
from tersor.ir.ops import AddOp, Conv2dOp, LogOp, ReluOp, WeightOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.instruments import VerifyEach
from tersor.passes.partial_runs import Change, PartialRuns
from tersor.passes.sensitivity import LossCurve, LossPoint, ScannedAxis, SensitivityScan, layer_names, read_scan
from tersor.tests.random_graphs import GraphBuilder


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(16, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU())
    net = nn.Sequential(first, second, nn.Flatten(1), nn.Linear(24 * 16, 20), nn.ReLU(), nn.Linear(20, 5))
    return tersor.from_torch(net.eval(), torch.zeros(2, 3, 6, 6))


@pytest.fixture(scope="module")
def scan(graph: Graph) -> SensitivityScan:
    return analyze(graph)


@pytest.fixture(scope="module")
def file(scan: SensitivityScan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scan.save(tmp_path_factory.mktemp("scan") / "scan.json")


def batches(count: int = 3, size: int = 2) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(size, 3, 6, 6, generator=generator)


def analyze(graph: Graph, **options: Any) -> SensitivityScan:
    return tersor.analyze_sensitivity(graph, **{"data": batches, **options})


def curve(scan: SensitivityScan, axis: str, name: str, kind: str = "") -> LossCurve:
    found = scan.axis(axis)
    assert found is not None
    (one,) = (one for one in found.curves if one.name == name and kind in ("", one.kind))
    return one


def relative_error(graph: Graph, changed: Graph) -> float:
    noise = signal = 0.0
    for batch in batches():
        (exact,), (found,) = graph.evaluate(batch), changed.evaluate(batch)
        noise += (exact.double() - found.double()).square().sum().item()
        signal += exact.double().square().sum().item()
    return math.sqrt(noise / signal)


def locations(graph: Graph, kind: type = Conv2dOp) -> list[str]:
    return [op.location for op in graph.ops if isinstance(op, kind)]


# Figures ----------------------------------------------------------------------------------------------------------


def test_every_layer_has_its_curves(scan: SensitivityScan) -> None:
    names = {axis.name: [one.name for one in axis.curves] for axis in scan.axes}
    assert names["bits"] == ["0.0", "1.0", "3", "5"]
    assert names["channels"] == ["0.0", "1.0", "3"]  # those of the last layer are outputs
    kinds = [(one.name, one.kind) for axis in scan.axes if axis.name == "ranks" for one in axis.curves]
    assert sorted(kinds) == [
        ("0.0", "spatial"),
        ("0.0", "tucker2"),
        ("1.0", "spatial"),
        ("1.0", "tucker2"),
        *((name, "svd") for name in ("3", "5")),
    ]
    assert (scan.batches, scan.data, scan.score) == (3, "data", None)


def test_more_loses_more(scan: SensitivityScan) -> None:
    for axis in scan.axes:
        for one in axis.curves:
            losses = [point.loss for point in one.points if point.label != "input 8"]
            assert losses[0] < losses[-1], one.name
            assert all(0 < loss < 3 for loss in losses)


@pytest.mark.parametrize(("name", "label"), [("0.0", "30%"), ("1.0", "50%"), ("3", "90%")])
def test_channels_lose_what_pruning_loses(graph: Graph, scan: SensitivityScan, name: str, label: str) -> None:
    (point,) = (one for one in curve(scan, "channels", name).points if one.label == label)
    pruned = run_passes(graph, f'prune-channels{{ratio={{"{name}":{float(label[:-1]) / 100}}},floor=0}}')
    assert point.error == pytest.approx(relative_error(graph, pruned), rel=1e-4)
    kept = int(point.detail.split()[0])
    assert point.value == pytest.approx(1 - kept / curve(scan, "channels", name).size[0])


@pytest.mark.parametrize(("name", "label"), [("0.0", "50%"), ("1.0", "50%")])
def test_batch_norms_are_measured_again_behind_a_change(graph: Graph, name: str, label: str) -> None:
    scan = analyze(graph, axes=["channels"], reestimate=True)
    assert scan.reestimated
    (point,) = (one for one in curve(scan, "channels", name).points if one.label == label)
    pipelines = ("reestimate-batchnorm", f'prune-channels{{ratio={{"{name}":0.5}}}},reestimate-batchnorm')
    whole, pruned = (tersor.run_passes(graph, one, calibration=list(batches())) for one in pipelines)
    # The pass stores the variance for samples to come, which is 1 / (n - 1) larger than that of these.
    assert point.error == pytest.approx(relative_error(whole, pruned), rel=0.02)


def test_scores_are_of_new_statistics(graph: Graph) -> None:
    seen = []

    def evaluate(model: Model) -> float:
        seen.append(torch.cat([torch.as_tensor(model(batch)) for batch in batches()]))
        return 0.0

    analyze(graph, axes=["channels"], settings={"channels": (0.5,)}, evaluate=evaluate, reestimate=True)
    pipeline = 'prune-channels{ratio={"0.0":0.5}},reestimate-batchnorm'
    pruned = tersor.run_passes(graph, pipeline, calibration=list(batches()))
    expected = torch.cat([pruned.evaluate(batch)[0] for batch in batches()])
    assert (seen[1] - expected).norm() < 0.02 * expected.norm()


def test_changes_that_lead_to_no_numbers_do_not_stop_a_scan(graph: Graph) -> None:
    weight = next(op for op in graph.ops if isinstance(op, WeightOp) and len(op.result.shape) == 4)
    change = Change(weights={weight.attrs.id: torch.full(weight.result.shape, math.inf)})
    variant = Variant("all", 1.0, "", tuple(weight.result.users), lambda: change)
    assert errors(graph, [[batch] for batch in batches()], [variant], lambda count: None, reestimate=True) == [None]


def test_a_group_that_several_layers_read() -> None:
    b = GraphBuilder({"x": TensorType((2, 3, 6, 6))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8, location="stem"))
    early = b.op(ReluOp, b.conv(x, 4, location="early"))
    graph = b.done(b.op(AddOp, b.conv(early, 5, location="late"), b.conv(x, 5, location="beside")))
    scanned = curve(analyze(graph, axes=["channels"], settings={"channels": (0.5,)}), "channels", "stem")
    pruned = run_passes(graph, "prune-channels{ratio={stem:0.5},floor=0}")
    assert scanned.points[0].error == pytest.approx(relative_error(graph, pruned), rel=1e-4)


@pytest.mark.parametrize("name", ["0.0", "3"])
def test_zeros_lose_what_pruned_weights_lose(graph: Graph, scan: SensitivityScan, name: str) -> None:
    (point,) = (one for one in curve(scan, "zeros", name).points if one.label == "75%")
    pruned = run_passes(graph, f'prune-weights{{ratio={{"{name}":0.75}}}}')
    assert point.error == pytest.approx(relative_error(graph, pruned), rel=1e-4)


def test_ranks_lose_what_chains_lose(graph: Graph, scan: SensitivityScan) -> None:
    for method, name in (("tucker2", "1.0"), ("spatial", "1.0"), ("svd", "3")):
        found = curve(scan, "ranks", name, method)
        (point,) = (one for one in found.points if one.label == "25%")
        assert [math.ceil(full / 4) for full in found.size] == [int(one) for one in point.detail.split()[1].split("x")]
        plan = next(plan for plan in make_axis("ranks", {}).plans(graph, context()) if plan.curves[0].kind == method)
        variant = next(
            one for planned in plan.curves if planned.name == name for one in planned.variants if one.label == "25%"
        )
        (layer,) = variant.readers
        assert variant.make is not None
        change = variant.make()
        x = torch.randn(layer.inputs[0].shape)
        assert change.ops[layer](x, None, None).shape == layer.result.shape
        assert point.loss < 1


def test_bits_lose_what_rounding_loses(graph: Graph, scan: SensitivityScan) -> None:
    folded = run_passes(graph, "O2")
    layer = next(op for op in folded.ops if op.location == "1.0")
    made = layer.inputs[1].op
    assert isinstance(made, WeightOp)
    weight = folded.weights[made.attrs.id]
    for bits, steps in ((8, 127), (3, 3), (2, 1)):
        scale = weight.abs().amax((1, 2, 3), keepdim=True) / steps
        changed = folded.clone()
        changed.weights = type(folded.weights)({**folded.weights, made.attrs.id: (weight / scale).round() * scale})
        (point,) = (one for one in curve(scan, "bits", "1.0").points if one.label == str(bits))
        assert point.error == pytest.approx(relative_error(folded, changed), rel=1e-3)
    (point,) = (one for one in curve(scan, "bits", "1.0").points if one.label == "input 8")
    assert 0 < point.loss < 0.02


def test_each_output_counts_by_itself() -> None:
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 8, location="a"))
    small = b.conv(x, 2, location="small")
    large = b.op(AddOp, b.conv(b.graph.inputs[0], 2, location="large"), b.number(1e4))
    graph = b.done(small, large)
    found = tersor.analyze_sensitivity(graph, data=[torch.randn(1, 3, 4, 4)], axes=["channels"])
    assert curve(found, "channels", "a").points[-1].loss > 0.1


def test_scores_of_all_points(graph: Graph) -> None:
    shapes = []

    def evaluate(model: Model) -> float:
        outputs = model(torch.cat(list(batches())))
        shapes.append(tuple(outputs.shape))
        return float(outputs.abs().mean())

    settings = {"channels": (0.5,), "bits": (8, 2)}
    found = analyze(graph, axes=["channels", "bits"], settings=settings, evaluate=evaluate)
    assert set(shapes) == {(6, 5)}
    scores = [point.score for axis in found.axes for one in axis.curves for point in one.points]
    assert len(scores) == 3 + 4 * 3 and len(shapes) == len(scores) + 1
    assert None not in scores and len(set(scores)) == len(scores)
    assert found.score is not None and found.end == ""
    pruned = run_passes(graph, 'prune-channels{ratio={"1.0":0.5},floor=0}')
    expected = evaluate(lambda x: torch.cat([pruned.evaluate(part)[0] for part in x.split(2)]))  # type: ignore[arg-type]
    assert curve(found, "channels", "1.0").points[0].score == pytest.approx(expected, rel=1e-4)


def test_interrupted_scores_are_kept(graph: Graph) -> None:
    left = iter([0.9, 0.8, 0.7])

    def evaluate(model: Model) -> float:
        for score in left:
            return score
        raise KeyboardInterrupt

    found = analyze(graph, axes=["channels"], settings={"channels": (0.5, 0.25)}, evaluate=evaluate)
    assert found.is_interrupted and found.end == "interrupted: 2 of 6 models are scored"
    points = [one.points for axis in found.axes for one in axis.curves]
    assert [[point.score for point in one] for one in points] == [[0.8, None], [0.7, None], [None, None]]
    assert all(point.error for one in points for point in one)


def test_time_is_up(graph: Graph) -> None:
    found = analyze(graph, axes=["channels"], evaluate=lambda model: 1.0, seconds=1e-9)
    assert found.end == "1e-09 s were over: 0 of 27 models are scored" and not found.is_interrupted


def test_memory_is_bounded(graph: Graph, scan: SensitivityScan, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    original = sweep.portions

    def counted(runs: PartialRuns, given: Any) -> Iterator[Any]:
        for portion in original(runs, given):
            lengths.append(len(portion))
            yield portion

    monkeypatch.setattr(sweep, "portions", counted)
    monkeypatch.setattr(sweep, "MOST_BYTES", 2 * PartialRuns(graph).bytes_alive())
    assert analyze(graph, axes=["channels"]).axis("channels") == scan.axis("channels")
    assert lengths == [2, 1]


def test_only_what_follows_is_computed(graph: Graph) -> None:
    plan = next(iter(make_axis("bits", {"bits": (4,)}).plans(graph, context())))
    last = plan.curves[-1].variants[0]
    runs = PartialRuns(plan.graph)
    order = {op: index for index, op in enumerate(runs.ops)}
    calls: list[str] = []

    def noted(op: Any) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            calls.append(op.location)
            return op.evaluate(*operands)

        return run

    convs = [op for op in plan.graph.ops if isinstance(op, Conv2dOp)]
    assert last.make is not None
    whole = Change(last.make().weights, {op: noted(op) for op in convs})
    variant = Variant("4", 4, "", last.readers, lambda: whole)
    (found,) = errors(plan.graph, [(batch,) for batch in batches()], [variant], lambda count: None)
    assert calls == [] and found is not None and found > 0
    values = runs.begin([next(batches())])
    assert runs.finish(values, 0, whole)[0].shape == (2, 5) and calls == ["0.0", "1.0"]
    assert min(order[op] for op in last.readers) > order[convs[-1]]


def test_outputs_that_are_not_finite() -> None:
    """A layer whose zero is the logarithm's end: the point says so, and passes take it for an infinite loss."""
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 4, bias=False, location="a"))
    weight = b.constant(torch.eye(4).reshape(4, 4, 1, 1), "one.weight")
    shifted = b.op(AddOp, x, b.constant(torch.ones(1, 4, 1, 1), "shift"))
    graph = b.done(b.op(LogOp, b.op(Conv2dOp, shifted, weight, None, location="one")))
    found = tersor.analyze_sensitivity(graph, data=[torch.randn(1, 3, 4, 4)], axes=["channels"])
    points = curve(found, "channels", "a").points
    assert points[-1].error is None and points[-1].loss == math.inf
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))


def context() -> AxisContext:
    return AxisContext([(batch,) for batch in batches()], "l1", lambda text: None)


# Files ------------------------------------------------------------------------------------------------------------


def test_round_trip(scan: SensitivityScan, file: Path) -> None:
    assert read_scan(file) == scan
    assert json.loads(file.read_text())["schema"] == 1


def damaged(file: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(file.read_text())
    change(content)
    path = file.with_name("damaged.json")
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=2), "schema must be one of [1], not 2"),
        (lambda c: c.pop("axes"), "it lacks 'axes'"),
        (lambda c: c["axes"][0].update(curves=3), "it.axes[0].curves must be a list, not 3"),
        (lambda c: c["axes"][0]["curves"][0]["points"][0].update(error="x"), "error must be float or NoneType"),
        (lambda c: c["axes"][0]["curves"][0]["points"][0].update(error=math.inf), "error must be float or NoneType"),
    ],
)
def test_damaged_json(file: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(TersorError) as caught:
        read_scan(damaged(file, change))
    assert message in str(caught.value) and "is no scan of sensitivities, or damaged" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TersorError, match=r"absent\.json: No such file or directory; `tersor analyze sensitivity`"):
        read_scan(tmp_path / "absent.json")
    for name, content in (("cut.json", b'{"model": '), ("bytes.json", b"\xff\xfe\x00"), ("list.json", b"[1]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TersorError, match=rf"{name} is no scan of sensitivities"):
            read_scan(tmp_path / name)


def test_losses_between_points() -> None:
    points = [(0.2, 0.1), (0.4, 0.05), (0.8, 0.5), (0.9, None)]
    found = LossCurve("a", "", ("a",), (10,), tuple(LossPoint("", share, "", loss) for share, loss in points))
    np.testing.assert_allclose(found.losses([0, 0.1, 0.2, 0.4, 0.6, 0.8], 0), [0, 0.05, 0.1, 0.1, 0.3, 0.5])
    assert found.losses(0.85, 0) == math.inf
    falling = LossCurve("a", "", ("a",), (10,), (LossPoint("", 0.5, "", 0.2),))
    np.testing.assert_allclose(falling.losses([1, 0.75, 0.5], whole=1), [0, 0.1, 0.2])
    assert LossCurve("a", "", (), (), ()).losses([0, 0.5], 0).tolist() == [0, math.inf]


def test_layers_of_one_name() -> None:
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    x = b.conv(b.conv(b.conv(b.graph.inputs[0], 4, location="a"), 4, location=""), 4, location="a")
    convs = [op for op in b.done(x).ops if isinstance(op, Conv2dOp)]
    assert layer_names(convs) == ["a", "conv2d", "a #2"]


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": ["chanels"]}, r"axes: unknown axis 'chanels'; did you mean 'channels'\?"),
        ({"axes": []}, r"axes: none is given; choose from bits, channels, ranks, zeros"),
        ({"settings": {"channels": (0.5, 1.5)}}, r"settings of axis channels: a share .* below 1, not 1\.5"),
        ({"settings": {"ranks": ()}}, r"settings of axis ranks: give at least one setting"),
        ({"settings": {"bits": (4.5,)}}, r"settings of axis bits: bits are a whole number from 2 to 16, not 4\.5"),
        ({"axes": ["bits"], "settings": {"ranks": (0.5,)}}, r"settings are given for axis ranks, which is not among"),
        ({"criterion": "l3"}, r"unknown criterion 'l3'"),
        ({"batches": 0}, r"batches must be 1 or more, not 0"),
        ({"seconds": 5}, r"seconds limits what scores take: give evaluate too"),
        ({"seconds": -1, "evaluate": len}, r"seconds must be above 0, not -1"),
        ({"evaluate": 3}, r"evaluate must be a function that takes a model, not a int"),
        ({"data": None}, r"sensitivity needs calibration data: give at least one batch"),
        ({"data": []}, r"data: yields no batch; give at least one"),
        ({"data": [torch.zeros(2, 3, 6, 7)]}, r"data: batch 0 does not fit: input 'input' must have shape"),
        ({"evaluate": lambda model: math.nan}, r"<lambda>: returned nan; return a finite number"),
    ],
)
def test_mistakes(graph: Graph, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TersorError, match=message):
        analyze(graph, **options)


def test_nothing_to_measure_again() -> None:
    with pytest.raises(TersorError, match=r"reestimate: the model has no batch normalisation .*; leave it out"):
        tersor.analyze_sensitivity(chain(), data=[torch.zeros(1, 3, 8, 8)], reestimate=True)


def test_a_score_that_is_no_number_names_the_layer(graph: Graph) -> None:
    values = iter([1.0, 1.0, math.nan])
    with pytest.raises(TersorError, match=r"channels of 1\.0 at 50%: .*returned nan"):
        analyze(graph, axes=["channels"], settings={"channels": (0.5,)}, evaluate=lambda model: next(values))


def test_numbers_that_are_none_name_the_layer() -> None:
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    graph = b.done(b.conv(b.op(LogOp, b.conv(b.graph.inputs[0], 4, location="a")), 2, location="b"))
    with pytest.raises(TersorError, match=r"batch 0 makes numbers at log.* that are not a number \(NaN\)"):
        tersor.analyze_sensitivity(graph, data=[torch.randn(1, 3, 4, 4)], axes=["channels"])
    with pytest.raises(TersorError, match=r"batch 0 makes numbers at input 'x' that are not a number"):
        tersor.analyze_sensitivity(chain(), data=[torch.full((1, 3, 8, 8), math.nan)], axes=["channels"])


def test_no_layer_for_an_axis() -> None:
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    graph = b.done(b.conv(b.graph.inputs[0], 3, groups=3, location="depthwise"))
    data = [torch.randn(1, 3, 4, 4)]
    with pytest.raises(TersorError, match=r"axis ranks: test has no layer for it: depthwise: .*; leave it out"):
        tersor.analyze_sensitivity(graph, data=data, axes=["bits", "ranks"])
    assert [axis.name for axis in tersor.analyze_sensitivity(graph, data=data).axes] == ["bits", "zeros"]
    b = GraphBuilder({"x": TensorType((1, 3))})
    graph = b.done(b.op(ReluOp, b.graph.inputs[0]))
    with pytest.raises(TersorError, match=r"test has no layer that can be compressed \(bits, channels, ranks, zeros\)"):
        tersor.analyze_sensitivity(graph, data=[torch.randn(1, 3)])


def test_compiled_graphs_are_refused(graph: Graph) -> None:
    laid_out = run_passes(graph, "O3,layout{block=8}")
    with pytest.raises(TersorError, match="the graph has layouts already; give the model itself"):
        analyze(laid_out)


def test_fused_graphs_are_taken_apart(graph: Graph, scan: SensitivityScan) -> None:
    fused = run_passes(graph, "O3")
    found = analyze(fused, axes=["bits"])
    assert [one.name for one in found.axes[0].curves] == ["0.0", "1.0", "3", "5"]
    np.testing.assert_allclose(
        [point.loss for one in found.axes[0].curves for point in one.points],
        [point.loss for axis in scan.axes if axis.name == "bits" for one in axis.curves for point in one.points],
        rtol=1e-3,
    )


# Passes that read it ----------------------------------------------------------------------------------------------


def chain(*widths: int, seed: int = 0) -> Graph:
    """Convolutions one after another, named c0, c1, …; then ``last``."""
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))}, seed=seed)
    x = b.graph.inputs[0]
    for index, width in enumerate(widths or (16, 24, 32)):
        x = b.op(ReluOp, b.conv(x, width, location=f"c{index}"))
    return b.done(b.conv(x, 5, 1, location="last"))


def written(
    path: Path, axis: str, sizes: dict[str, tuple[int, ...]], losses: dict[str, list[float]], kind: str = "l1"
) -> str:
    """A scan with losses at settings that divide the way evenly."""
    curves = []
    for name, found in losses.items():
        shares = np.linspace(0, 1, len(found) + 1)[1:] * (0.9 if axis == "channels" else 0.8)
        values = shares if axis == "channels" else 1 - shares
        points = tuple(LossPoint(f"{v:g}", float(v), "", loss) for v, loss in zip(values, found, strict=True))
        curves.append(LossCurve(name, kind, (name,), sizes[name], points))
    scan = SensitivityScan("chain", (ScannedAxis(axis, "", tuple(curves)),), "data", 1)
    return str(scan.save(path / "scan.json"))


def counts(graph: Graph) -> dict[str, int]:
    return {op.location: op.result.shape[1] for op in graph.ops if isinstance(op, Conv2dOp)}


CHANNELS: dict[str, tuple[int, ...]] = {"c0": (16,), "c1": (24,), "c2": (32,)}


def test_groups_lose_the_same(tmp_path: Path) -> None:
    losses = {"c0": [0.1, 0.2, 0.3], "c1": [0.01, 0.02, 0.03], "c2": [0.05, 0.1, 0.15]}
    path = written(tmp_path, "channels", CHANNELS, losses)
    manager = PassManager(as_pipeline(f"prune-channels{{macs=0.15,sensitivity={path}}}"), (VerifyEach(),))
    outcome = manager.run(chain())
    left = counts(outcome.graph)
    macs = outcome.graph.cost().macs / chain().cost().macs
    assert 0.1 < macs <= 0.15
    assert left["c1"] == 3  # as far as the floor, a tenth, allows: 2.4 channels
    alone = {"c0": (16 - left["c0"]) / 16 / 3, "c2": (32 - left["c2"]) / 32 / 6}  # 0.1 and 0.05 for each 0.3
    assert 0.01 < alone["c0"] == pytest.approx(alone["c2"], abs=1 / 16 / 3)
    assert any(
        "sensitivity: no group alone moves the outputs by more than" in one for one in outcome.report.records[0].notes
    )


def test_the_real_scan_prunes(graph: Graph, file: Path) -> None:
    pruned = run_passes(graph, f"prune-channels{{macs=0.6,sensitivity={file}}}")
    assert 0.4 < pruned.cost().macs / graph.cost().macs <= 0.6
    by_name = run_passes(graph, f'prune-channels{{macs=0.6,sensitivity={file},skip=["1.0"]}}')
    assert counts(by_name)["1.0"] == 24
    after = run_passes(graph, f"O3,prune-channels{{params=0.5,sensitivity={file}}}")
    assert sum(after.weights[id].numel() for id in after.weights) <= 0.5 * sum(
        graph.weights[id].numel() for id in graph.weights
    )


def test_rounds_end_where_one_step_ends(graph: Graph, file: Path) -> None:
    once = run_passes(graph, f"prune-channels{{macs=0.6,sensitivity={file}}}")
    twice = run_passes(graph, f"prune-channels{{macs=0.6,sensitivity={file},rounds=3}}")
    assert abs(twice.cost().macs / once.cost().macs - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("scope=layer", "sensitivity decides how much of each layer goes; leave scope=layer out"),
        ("latency=0.5", "sensitivity decides how much of each layer goes; leave latency out"),
        ("ratio={c0:0.5}", "sensitivity needs macs or params beside a table of ratios"),
    ],
)
def test_options_that_contradict(file: Path, options: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(f"prune-channels{{sensitivity={file},{options}}}")


def test_scans_of_other_models(tmp_path: Path, file: Path) -> None:
    with pytest.raises(
        TersorError, match=r"is a scan of another model \(.*\): it has no curve for channels of 'c0', but"
    ):
        run_passes(chain(), f"prune-channels{{macs=0.5,sensitivity={file}}}")
    path = written(tmp_path, "channels", CHANNELS, {name: [0.1, 0.2] for name in CHANNELS})
    with pytest.raises(TersorError, match=r"channels of 'c1': 24 when it was scanned, 20 here"):
        run_passes(chain(16, 20, 32), f"prune-channels{{macs=0.5,sensitivity={path}}}")
    with pytest.raises(TersorError, match=r"has no curves for ranks; scan again with --axes ranks"):
        run_passes(chain(), f'low-rank{{ranks="sensitivity:{path}"}}')
    with pytest.raises(TersorError, match=r"macs=0\.01 would empty a layer: .* as far as the scan goes"):
        run_passes(chain(), f"prune-channels{{macs=0.01,sensitivity={path}}}")
    with pytest.raises(TersorError, match=r"absent\.json: No such file"):
        parse_pipeline("prune-channels{sensitivity=absent.json}")


def test_ranks_lose_the_same(tmp_path: Path) -> None:
    graph = chain()
    sizes: dict[str, tuple[int, ...]] = {"c1": (16, 24), "c2": (24, 32), "c0": (3, 16)}
    losses = {"c0": [1.0, 2.0], "c1": [0.2, 0.4], "c2": [0.1, 0.2]}
    path = written(tmp_path, "ranks", sizes, losses, "tucker2")
    small = run_passes(graph, f'low-rank{{ranks="sensitivity:{path}:0.5"}}')
    assert 0.4 < small.cost().macs / graph.cost().macs <= 0.5
    ranks = {
        op.attrs.id: tuple(op.result.shape[:2])
        for op in small.ops
        if isinstance(op, WeightOp) and ".core" in op.attrs.id
    }
    gone = {id: 1 - min(shape[0] / sizes[id[:2]][1], shape[1] / sizes[id[:2]][0]) for id, shape in ranks.items()}
    assert gone["c2.weight.core"] > 1.5 * gone["c1.weight.core"]
    assert run_passes(graph, f'low-rank{{ranks="sensitivity:{path}:0.7"}}').cost().macs > small.cost().macs
    with pytest.raises(TersorError, match=r"cannot be reached: .* every layer has the lowest rank that was scanned"):
        run_passes(graph, f'low-rank{{ranks="sensitivity:{path}:0.01"}}')
    with pytest.raises(TersorError, match=r"has no curves for ranks by spatial; scan again"):
        run_passes(graph, f'low-rank{{method=spatial,ranks="sensitivity:{path}"}}')


def test_the_real_scan_factorizes(graph: Graph, file: Path) -> None:
    for method, ratio in (("tucker2", 0.5), ("spatial", 0.7), ("svd", 0.95)):
        small = run_passes(graph, f"low-rank{{method={method},ranks=sensitivity:{file}:{ratio}}}")
        assert small.cost().macs <= ratio * graph.cost().macs


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("sensitivity", "rank rule sensitivity needs a number|needs"),
        ("sensitivity::0.5", "the file of a scan must be named"),
        ("sensitivity:scan.json:1.5", r"above 0 and below 1, not 1\.5"),
    ],
)
def test_rules_that_make_no_sense(rule: str, message: str) -> None:
    with pytest.raises(TersorError, match=message):
        parse_pipeline(f"low-rank{{ranks={rule}}}")


# The chart --------------------------------------------------------------------------------------------------------


def test_the_chart_names_those_that_lose_most(scan: SensitivityScan) -> None:
    axis = scan.axis("bits")
    assert axis is not None
    chart = CurvesChart.of(axis)
    assert [label for _, label in chart.columns] == ["8", "6", "4", "3", "2"]  # no line leads to an input's bits
    names = [one.label for one in chart.curves if one.is_marked]
    assert all(abs(a - b) >= 15.9 for a, b in zip(sorted(names), sorted(names)[1:], strict=False))
    heights = [float(corner.split(",")[1]) for corner in chart.curves[0].path.split()]
    assert heights == sorted(heights, reverse=True)  # upward


def test_plans_come_again(graph: Graph) -> None:
    axis = make_axis("channels", {})
    first, second = (next(iter(axis.plans(graph, context()))) for _ in range(2))
    assert isinstance(first, AxisPlan)
    assert [one.detail for c in first.curves for one in c.variants] == [
        one.detail for c in second.curves for one in c.variants
    ]
