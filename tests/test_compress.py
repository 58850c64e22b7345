"""Compression in one call: plans, data, evaluation, steps, and what is left when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.compression.data import open_data
from tersor.compression.plan import make_plan
from tersor.compression.result import Compressed, CompressError, End
from tersor.compression.session import StepObserver
from tersor.evaluation import Evaluation, Model, interpreted_model, run_in_parts, weights_of
from tersor.ir import Graph
from tersor.targets.tuning.timing import Timing
from tersor.tests.passes.lowrank.planted import Clock

PRUNE, FACTORIZE = "prune-channels{multiple=4}", "low-rank{ranks=fixed:4,multiple=4}"
PIPELINE = f"O3,{PRUNE},{FACTORIZE}"


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(1)
    )
    return tersor.from_torch(nn.Sequential(net, nn.Linear(24 * 16, 5)).eval(), torch.zeros(2, 3, 6, 6))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Nothing is timed: a call takes as many nanoseconds as the model has multiply-adds, passes are told the same."""
    times: dict[str, float] = {"original": 1.0, "step": 0.5}

    def measure(candidate: Any, incumbent: Any, policy: Any) -> Timing:
        if incumbent is None:
            return Timing(times["original"], 0.01, 10, float("nan"))
        return Timing(times["step"], 0.01, 10, times["original"])

    monkeypatch.setattr("tersor.compression.judge.measure", measure)
    monkeypatch.setattr("tersor.compression.session.latency_of", lambda *_: Clock())
    return times


def batches(count: int = 3, size: int = 2) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(size, 3, 6, 6, generator=generator)


def compress(graph: Graph, pipeline: str = PIPELINE, **options: Any) -> Compressed:
    return tersor.compress(graph, pipeline=pipeline, threads=1, **{"data": batches, **options})


def scores(*values: Any) -> Callable[[Model], Any]:
    """An evaluation that says these, one after the other."""
    left = list(values)
    return lambda model: left.pop(0)


# Plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "steps"),
    [
        (
            "O3,prune-channels{macs=0.6},low-rank{ranks=macs:0.5},quantize",
            "O3",
            ["prune-channels{macs=0.6}", "low-rank{ranks=macs:0.5}", "quantize"],
        ),
        (
            "prune-channels,reestimate-batchnorm,O3,quantize",
            "",
            ["prune-channels,reestimate-batchnorm", "O3,quantize"],
        ),
        ("dce,O2,prune-channels,cse,dce", "dce,O2", ["prune-channels,cse,dce"]),
        (
            "O2,quantize-annotate,quantize-calibrate,bias-correction,quantize-realize,fuse",
            "O2,quantize-annotate,quantize-calibrate",
            ["bias-correction,quantize-realize,fuse"],
        ),
    ],
)
def test_plans(text: str, start: str, steps: list[str]):
    plan = make_plan(text)
    assert str(plan.start) == start
    assert list(map(str, plan.steps)) == steps
    assert str(plan.pipeline) == text


@pytest.mark.parametrize("text", ["", "O3", "canonicalize,dce"])
def test_a_pipeline_that_compresses_nothing(text: str):
    with pytest.raises(TersorError, match="has no pass that compresses; add prune-channels, low-rank or quantize"):
        make_plan(text)


# Data -------------------------------------------------------------------------------------------------------------


def test_bad_data_stops_before_any_work(graph):
    with pytest.raises(TersorError, match="data: yields no batch"):
        compress(graph, data=[])


def test_data_by_name(graph, tmp_path, monkeypatch):
    (tmp_path / "tersor_data_here.py").write_text("import torch\nbatches = [torch.zeros(2, 3, 6, 6)]\n")
    np.save(tmp_path / "a.npy", np.ones((2, 3, 6, 6), np.float32))
    monkeypatch.chdir(tmp_path)
    assert open_data([], graph) is None
    assert [float(x.sum()) for (x,) in open_data(["a.npy", "a.npy"], graph)] == [216.0, 216.0]
    assert len(list(open_data(["tersor_data_here:batches"], graph))) == 1
    for names, message in (
        (["a.npy", "tersor_data_here:batches"], "files or one loader, not both"),
        (["tersor_data_here:batches"] * 2, "takes one loader, got 2"),
        (["tersor_data_here:batch"], "did you mean 'batches'?"),
        (["nothing"], "not of the form package.module:loader; give a loader or .npy"),
        (["nothing.npy"], "nothing.npy: no such file"),
    ):
        with pytest.raises(TersorError, match=message.replace("?", r"\?")):
            open_data(names, graph)


# Evaluation -------------------------------------------------------------------------------------------------------


def test_models_take_longer_batches(graph):
    (x,) = batches(1, size=6)
    expected = torch.cat([graph.evaluate(part)[0] for part in x.split(2)])
    model = interpreted_model(graph)
    assert torch.equal(model(x), expected)
    np.testing.assert_array_equal(model(x.numpy()), expected.numpy())
    with pytest.raises(TersorError, match=r"must have shape \[2, 3, 6, 6\]"):
        model(x[:5])


def test_functions_for_modules_find_what_they_ask_for(graph):
    (x,) = batches(1)
    model = interpreted_model(graph)
    assert isinstance(model, nn.Module)
    assert model.eval() is model
    assert model.to("cpu").to(torch.float32).cpu().float() is model
    assert not model.training
    assert next(model.parameters()).device == x.device
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in weights_of(graph))
    assert not any(one.requires_grad for one in model.parameters())
    assert torch.equal(model(**{graph.inputs[0].name: x}), model(x))
    assert list(Model(lambda: (), {}).parameters())
    for misuse, message in (
        (lambda: model.train(), "cannot be trained; leave out model.train"),
        (lambda: model.half(), "leave out what moves it to cpu or makes it float16"),
        (lambda: model.to("meta"), "leave out what moves it to meta"),
        (lambda: model(images=x), "the model takes the inputs input, got images"),
        (lambda: model(x, x), "takes 1 inputs"),
    ):
        with pytest.raises(TersorError, match=message):
            misuse()


def test_outputs_are_joined():
    (x,) = batches(1, size=4)
    both = run_in_parts(lambda part: (part + 1, part.sum((1, 2, 3))), (x,), [(2, 3, 6, 6)])
    assert torch.equal(both[0], x + 1)
    assert torch.equal(both[1], x.sum((1, 2, 3)))


ANY_MODEL = Model(lambda *inputs: inputs, {})


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), np.array([0.5])])
def test_scores(value: Any):
    assert Evaluation(lambda model: value)(ANY_MODEL) == 0.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "evaluate: returned a NoneType; return a number, larger for better"),
        ("0.5", "returned a str"),
        (True, "returned a bool"),
        (torch.zeros(2), "returned a Tensor"),
        (1j, "returned a complex"),
        (float("nan"), "returned nan; return a finite number"),
        (torch.tensor(float("inf")), "returned inf; return a finite number"),
    ],
)
def test_bad_scores(value: Any, message: str):
    with pytest.raises(TersorError, match=message):
        Evaluation(lambda model: value)(ANY_MODEL)


def test_evaluation_is_given_the_compiled_program(graph):
    (x,) = batches(1)
    expected = graph.evaluate(x)[0]
    seen = []

    def evaluate(model: Model) -> float:
        seen.append(model(x))
        assert isinstance(model(x.numpy()), np.ndarray)
        return 1.0

    result = compress(graph, evaluate=evaluate)
    assert len(seen) == 3
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[2], result.executable(x))
    assert float((seen[1] - expected).norm() / expected.norm()) > 0.01


# Steps ------------------------------------------------------------------------------------------------------------


def test_every_step_is_reported(graph, tmp_path):
    names: list[str] = []

    class Names(StepObserver):
        def finished(self, step: Any) -> None:
            names.append(step.name)

    path = tmp_path / "m.tersor"
    result = compress(graph, evaluate=scores(0.9, 0.8, 0.7), output=path, observer=Names())
    original, pruned, factorized = result.steps
    assert [step.name for step in result.steps] == ["original", PRUNE, FACTORIZE] == names
    assert (result.end, result.kept, result.reason) == (End.COMPLETE, 2, "")
    assert [step.score for step in result.steps] == [0.9, 0.8, 0.7]
    assert original.macs == graph.cost().macs > 2 * pruned.macs > 2 * factorized.macs
    assert original.weight_bytes == 4 * original.parameters > pruned.weight_bytes > factorized.weight_bytes
    assert original.error < 1e-5
    assert min(pruned.error, factorized.error) > 0.01
    assert original.latency.speedup == 1.0
    assert pruned.latency.speedup == 2.0
    assert factorized.artifact_bytes == path.stat().st_size
    assert result.headline.startswith("2.00x faster, ")
    assert result.headline.endswith("score -20.00 points")
    fused = ["fuse-epilogue", "fuse-elementwise"]
    assert [record.name for record in result.report.records][-6:] == ["prune-channels", *fused, "low-rank", *fused]
    assert [record.name for record in original.records][-1] == "fuse-elementwise"
    assert [record.name for record in pruned.records] == ["prune-channels", *fused]
    assert [verdict.is_whole for verdict in factorized.records[0].verdicts][-1]
    (x,) = batches(1)
    torch.testing.assert_close(tersor.load(path)(x), result.executable(x))
    assert [p.name for p in tmp_path.iterdir()] == ["m.tersor"]


def test_a_module_in_integers_without_evaluation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    images = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    result = tersor.compress(net, images[0], pipeline="O3,quantize{keep=all}", data=images, threads=1)
    original, quantized = result.steps
    assert quantized.weight_bytes < 0.4 * original.weight_bytes
    assert quantized.macs == original.macs
    assert 1e-4 < quantized.error < 0.1
    assert "score" not in result.headline
    assert quantized.score is None


def test_advises_to_measure_batch_norms_again(graph):
    assert "prune-channels,reestimate-batchnorm,O3" in compress(graph, f"O3,{PRUNE}").advice
    result = compress(graph, f"{PRUNE},reestimate-batchnorm,O3,{FACTORIZE}")
    assert result.advice == ""
    assert [step.name for step in result.steps[1:]] == [f"{PRUNE},reestimate-batchnorm", f"O3,{FACTORIZE}"]


def test_without_data_outputs_are_compared_on_random_inputs(graph):
    result = compress(graph, PRUNE, data=None)
    assert result.setting.data == ""
    assert result.best.error > 0.01


def test_what_does_not_run_here_is_not_timed(graph, monkeypatch):
    monkeypatch.setattr("tersor.compression.session.runs_here", lambda target: False)
    result = compress(graph, PRUNE, evaluate=lambda model: float(model(torch.ones(2, 3, 6, 6)).sum()))
    assert [step.latency for step in result.steps] == [None, None]
    assert result.seconds(result.best) is None
    assert "faster" not in result.headline
    (x,) = (torch.ones(2, 3, 6, 6),)
    assert result.original.score == pytest.approx(float(graph.evaluate(x)[0].sum()), abs=1e-4)


def test_latencies_are_those_of_a_calm_machine(graph, quick):
    class Disturbed(StepObserver):
        def finished(self, step: Any) -> None:
            quick.update(original=2.0, step=0.5)

    result = compress(graph, PRUNE, observer=Disturbed())
    assert [result.seconds(step) for step in result.steps] == [1.0, 0.25]


def test_a_step_that_changes_nothing_is_the_model_before(graph, monkeypatch, tmp_path):
    monkeypatch.setattr("tersor.compression.session.latency_of", lambda *_: Clock(factor=1e3))
    path = tmp_path / "m.tersor"
    result = compress(graph, evaluate=scores(0.9), max_drop=0.1, output=path)
    original, pruned, factorized = result.steps
    assert original.latency == pruned.latency == factorized.latency
    assert (factorized.macs, factorized.score, result.kept) == (original.macs, 0.9, 2)
    assert all(not verdict.stays for verdict in pruned.records[0].verdicts if not verdict.is_whole)
    assert tersor.load(path).graph


# Stopping ---------------------------------------------------------------------------------------------------------


def test_stops_at_the_last_model_that_keeps_the_score(graph, tmp_path):
    path = tmp_path / "m.tersor"
    result = compress(graph, evaluate=scores(0.9, 0.89, 0.8), max_drop=0.01, output=path)
    assert (result.end, result.kept, len(result.steps)) == (End.DROP, 1, 3)
    assert result.reason == (
        f"{FACTORIZE} lowers the score from 90.00% to 80.00%, by more than 0.01; kept the model after {PRUNE}"
    )
    assert path.stat().st_size == result.best.artifact_bytes
    (x,) = batches(1)
    torch.testing.assert_close(tersor.load(path)(x), result.executable(x))


def test_keeps_the_original_when_the_first_step_drops_too_far(graph, tmp_path):
    path = tmp_path / "m.tersor"
    result = compress(graph, evaluate=scores(0.9, 0.8), max_drop=0.01, output=path)
    assert (result.end, result.kept) == (End.DROP, 0)
    assert result.reason.endswith("the original is kept, not compressed")
    assert result.headline == "not compressed"
    (x,) = batches(1)
    torch.testing.assert_close(tersor.load(path)(x), graph.evaluate(x)[0], rtol=1e-4, atol=1e-5)


def test_keeps_the_fastest_of_those_that_keep_the_score(graph, quick):
    class Slower(StepObserver):
        def finished(self, step: Any) -> None:
            quick["step"] = 0.5 if step.name == "original" else 0.6

    result = compress(graph, evaluate=scores(0.9, 0.9, 0.9), max_drop=0.0, observer=Slower())
    assert (result.end, result.kept) == (End.COMPLETE, 1)
    unlimited = compress(graph, evaluate=scores(0.9, 0.9, 0.9), observer=Slower())
    assert unlimited.kept == 2, "without a limit, the whole pipeline is what was asked for"


def test_a_later_failure_loses_nothing(graph, tmp_path):
    path = tmp_path / "m.tersor"
    with pytest.raises(
        CompressError, match=r"low-rank\{ranks=macs:0.001\}: pass 'low-rank' failed: .*cannot be"
    ) as caught:
        compress(graph, f"O3,{PRUNE},low-rank{{ranks=macs:0.001}}", output=path)
    saved = caught.value.compressed
    assert (saved.end, saved.kept, len(saved.steps)) == (End.FAILED, 1, 2)
    (x,) = batches(1)
    torch.testing.assert_close(tersor.load(path)(x), saved.executable(x))
    assert [p.name for p in tmp_path.iterdir()] == ["m.tersor"]


def test_an_evaluation_that_fails_later_loses_nothing(graph):
    with pytest.raises(CompressError, match="<lambda>: raised IndexError: pop from empty list") as caught:
        compress(graph, evaluate=scores(0.9, 0.9))
    assert caught.value.compressed.kept == 1


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("O3,prune-channels{macs=0.001}", "would empty a layer"),
        ("O3,reestimate-batchnorm,prune-channels", "no batch normalisation is left"),
        ("prune-channels,fuze", "unknown pass 'fuze'.*did you mean 'fuse'"),
    ],
)
def test_a_first_step_that_fails_writes_nothing(graph, tmp_path, pipeline: str, message: str):
    with pytest.raises(TersorError, match=message) as caught:
        compress(graph, pipeline, output=tmp_path / "m.tersor")
    assert not isinstance(caught.value, CompressError)
    assert list(tmp_path.iterdir()) == []


def test_interrupted(graph, tmp_path):
    class Impatient(StepObserver):
        stage = FACTORIZE

        def begin(self, stage: str) -> None:
            if stage == f"judge {self.stage}":
                raise KeyboardInterrupt

    observer, path = Impatient(), tmp_path / "m.tersor"
    result = compress(graph, output=path, observer=observer)
    assert (result.end, result.kept, result.is_interrupted) == (End.INTERRUPTED, 1, True)
    assert result.reason == f"interrupted during {FACTORIZE}"
    assert path.is_file()
    observer.stage = PRUNE
    with pytest.raises(KeyboardInterrupt):
        compress(graph, observer=observer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.1}, "max_drop needs evaluate"),
        ({"max_drop": -1.0, "evaluate": len}, "max_drop must be 0 or more, not -1"),
        ({"max_drop": float("nan"), "evaluate": len}, "max_drop must be 0 or more, not nan"),
        ({"evaluate": 3}, "evaluate must be a function that takes a model, not a int"),
        ({"output": Path("nowhere/m.tersor")}, "nowhere is not an existing directory"),
        ({"target": "x86:znver6"}, "did you mean 'x86:znver5'"),
        ({"evaluate": lambda model: "good"}, "<lambda>: returned a str"),
    ],
)
def test_mistakes(graph, options: dict[str, Any], message: str):
    with pytest.raises(TersorError, match=message):
        compress(graph, **options)


# Zeros --------------------------------------------------------------------------------------------------------------


def test_zeros_count_as_size_and_not_as_speed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 32, bias=False))
    pipeline = "prune-weights{pattern=nm:2:4},prune-weights{ratio=0.9}"
    result = tersor.compress(model.eval(), torch.randn(4, 64), pipeline=pipeline, data=[torch.randn(4, 64)])
    original, half, tenth = result.steps
    assert original.weight_bytes == 4 * 64 * 96
    assert half.weight_bytes == 2 * 64 * 96 + 64 * 96 // 8
    assert tenth.weight_bytes == pytest.approx(4 * 0.1 * 64 * 96 + 64 * 96 // 8, abs=16)
    assert original.parameters == half.parameters and original.macs == half.macs == tenth.macs
