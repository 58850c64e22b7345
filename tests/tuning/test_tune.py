"""Tuning as users ask for it: `tersor.compile(tune=…)`, `tersor tune`, and latency predicted from records."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.cli.main import main
from tersor.ir import TersorWarning, graph_of
from tersor.targets.codegen.options import Options
from tersor.targets.machines import features
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.option import Option
from tersor.targets.tuning import driver
from tersor.targets.tuning.driver import check_measurable, load_records
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.log import append, read_log
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.predicted import MEASURED_ERROR, PredictedLatency
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.scheduler import Budget
from tersor.tests.tuning.fakes import FakeMeasurer

NATIVE = resolve_cpu("x86:native")
FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()), (torch.ones(1, 16, 20, 20),)
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1)).eval()


X = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def measurers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeMeasurer]]:
    """The measurers that were made instead of real ones."""
    made: list[FakeMeasurer] = []

    def make() -> FakeMeasurer:
        made.append(FakeMeasurer())
        return made[-1]

    monkeypatch.setattr(driver, "LocalMeasurer", make)
    yield made


@pytest.fixture
def optimized() -> tersor.ir.Graph:
    return tersor.run_passes(tersor.from_torch(network(), (X,)), "O3,fold-batchnorm,layout", target=NATIVE)


def test_compile_tunes_and_computes_the_same(tmp_path: Path, measurers: list[FakeMeasurer]) -> None:
    executable = tersor.compile(network(), (X,), tune=40, log_dir=tmp_path)
    torch.testing.assert_close(executable(X), network()(X).detach(), rtol=1e-4, atol=1e-5)
    (measurer,) = measurers
    assert len(measurer.measured) >= 16
    assert len(read_log(tmp_path).records) == len(measurer.measured)


def test_second_compile_measures_nothing(tmp_path: Path, measurers: list[FakeMeasurer]) -> None:
    first = tersor.compile(network(), (X,), tune=16, log_dir=tmp_path)
    again = tersor.compile(network(), (X,), tune=16, log_dir=tmp_path)
    plain = tersor.compile(network(), (X,), log_dir=tmp_path)
    first_measurer, second_measurer = measurers  # the third compilation needs none
    assert first_measurer.measured and not second_measurer.measured
    knobs = [[kernel.knobs for kernel in one.info.kernels] for one in (first, again, plain)]
    assert knobs[0] == knobs[1] == knobs[2]


@pytest.mark.parametrize("tune", [-1, 2.5, True, "8"])
def test_compile_refuses_other_numbers_of_trials(tune: Any) -> None:
    with pytest.raises(TersorError, match="tune must be a whole number of trials"):
        tersor.compile(network(), (X,), tune=tune)


def test_damaged_log_is_named(tmp_path: Path) -> None:
    folder = tmp_path / NATIVE.name.replace(":", "-")
    folder.mkdir()
    (folder / "records.jsonl").write_text("no record\n")
    with pytest.warns(TersorWarning, match=r"records\.jsonl:1"):
        tersor.compile(network(), (X,), log_dir=tmp_path)


def test_records_of_others_are_counted(tmp_path: Path, optimized: tersor.ir.Graph) -> None:
    task = extract_tasks(optimized, replace(NATIVE, cores=1))[0]
    option = Options(task.workload, task.target).default
    append(tmp_path, [Record.now(task, Outcome(option, "ok", 1.0, baseline=1.0))])
    said: list[str] = []
    assert load_records(replace(NATIVE, cores=2), tmp_path, shipped=False, say=said.append) == []
    assert said == ["ignored 1 record: made for 1 thread"]
    assert len(load_records(replace(NATIVE, cores=1), tmp_path, shipped=False)) == 1


def test_machines_that_cannot_be_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    check_measurable(NATIVE)
    with pytest.raises(TersorError, match="tune on such a machine"):
        check_measurable(replace(NATIVE, name="arm:any", family="arm"))
    monkeypatch.setattr(features, "host_features", frozenset)
    with pytest.raises(TersorError, match=r"this processor lacks .*avx2.*tune for x86:native"):
        check_measurable(NATIVE)


# The command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tersor_tune_model.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["tune", *arguments])
    return int(ended.value.code or 0)


def test_tune_writes_log_model_and_results(
    folder: Path, measurers: list[FakeMeasurer], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tersor_tune_model:make", "--trials", "24", "--log-dir", "logs", "-o", "m.tersor", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert 8 <= result["trials"] <= 24  # processors with few registers have few candidates
    assert {"workload", "option", "seconds", "default_seconds"} <= set(result["tasks"][0])
    assert result["batches"][0]["trials"] == 1
    assert any(batch["rank_correlation"] is not None for batch in result["batches"])
    assert "rank correlation" in captured.err and "regret" in captured.err
    assert (folder / "m.tersor").is_file()
    assert len(read_log(folder / "logs").records) == len(measurers[0].measured)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tersor_tune_model:make", "--time", "-1"], "--time must be a positive number of seconds, not -1"),
        (["tersor_tune_model:make", "--target", "x86:znver6"], "did you mean 'x86:znver5'?"),
        (["tersor_tune_model:make", "-o", "nowhere/m.tersor"], "nowhere is not an existing directory"),
        (["nothing.pt2"], "nothing.pt2: no such file"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# Predicted latency ------------------------------------------------------------------------------------------------


def test_latency_from_records(optimized: tersor.ir.Graph) -> None:
    tasks = extract_tasks(optimized, NATIVE)
    result = driver.tune_graph(optimized, NATIVE, Budget(trials=64), log_dir=None, measurer=FakeMeasurer(noise=0.0))
    latency = PredictedLatency(NATIVE, result.records)
    known = {one.task.workload: one.seconds for one in result.tasks}
    for task in tasks:
        prediction = latency.predict_workload(task.workload, chosen(result, task))
        assert prediction.seconds == pytest.approx(known[task.workload], rel=1e-3)
        assert prediction.error == MEASURED_ERROR
    assert latency.graph_seconds(optimized) >= result.tuned_seconds * 0.999
    ops = [op for op in optimized.ops if op.inputs]
    assert all(0 < latency.op_seconds(op) < latency.graph_seconds(optimized) for op in ops)


def chosen(result, task) -> Option:
    return next(one.option for one in result.tasks if one.task.workload == task.workload)


def test_latency_without_records_says_how_little_it_knows(optimized: tersor.ir.Graph) -> None:
    prediction = PredictedLatency(NATIVE, []).predict(optimized)
    assert prediction.seconds > 0
    assert prediction.error > 0.3


def test_latency_prepares_what_it_is_given() -> None:
    graph = tersor.from_torch(network(), (X,))
    latency = PredictedLatency(NATIVE, [], lambda one: tersor.run_passes(one, "fuse,layout", target=NATIVE))
    conv = next(op for op in graph.ops if op.name == "conv2d")
    assert 0 < latency.op_seconds(conv) < latency.graph_seconds(graph)


def test_graph_of_one_op_keeps_its_numbers() -> None:
    graph = tersor.from_torch(network(), (X,))
    conv = next(op for op in graph.ops if op.name == "conv2d")
    (actual,) = graph_of(conv).evaluate(X)
    torch.testing.assert_close(actual, network().get_submodule("0")(X).detach())


def test_a_batch_systems_end_keeps_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(FakeMeasurer):
        def outcomes(self, *arguments: Any) -> Iterator[Outcome]:
            yield from super().outcomes(*arguments)
            if len(self.measured) > 8:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(driver, "LocalMeasurer", Ended)
    before = signal.getsignal(signal.SIGTERM)
    assert run("tersor_tune_model:make", "--log-dir", "logs", "-o", "m.tersor", "--json") == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads(capsys.readouterr().out)["reason"] == "interrupted"
    assert len(read_log(folder / "logs").records) > 8
    assert (folder / "m.tersor").exists()
