"""Early exits: where samples leave, what is computed for them, thresholds from data, and the artifact."""

from __future__ import annotations

import copy
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import EarlyExits, TersorError
from tersor.cli.main import main
from tersor.exits import ExitReport
from tersor.targets import EarlyExitExecutable
from tersor.targets.packaging.artifact import load_graph
from tersor.targets.runtime.exit_thresholds import ExitSamples, find_thresholds
from tersor.targets.runtime.exits import CONFIDENCES
from tersor.tests.targets.forged import rewrite

BATCH, CLASSES = 2, 5
X = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Exits(nn.Module):
    """Three exits that mostly agree, the later the surer; the last one reads what the first part made, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        layers = [nn.Linear(512, CLASSES) for _ in range(3)]
        with torch.no_grad():
            for conv in (self.middle, self.last):
                conv.weight.copy_(nn.init.dirac_(torch.empty(8, 8, 3, 3)) + 0.3 * conv.weight)
            direction = layers[2].weight / layers[2].weight.norm()
            for layer, scale in zip(layers, (8.0, 12.0, 16.0), strict=True):
                layer.weight.copy_(scale * (direction + 0.02 * layer.weight))
        self.heads = nn.ModuleList(nn.Sequential(nn.Flatten(), layer) for layer in layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.stem(x)
        b = self.middle(a).relu()
        c = self.last(b).relu() + a
        return {name: head(one) for name, head, one in zip(("a", "b", "c"), self.heads, (a, b, c), strict=True)}


MODEL = Exits().eval()


def expected(x: Tensor, thresholds: tuple[float | None, ...]) -> tuple[Tensor, list[int]]:
    """What exits return, by PyTorch, and where samples leave."""
    with torch.no_grad():
        outputs = list(MODEL(x).values())
    leaves = []
    for sample in range(len(x)):
        sure = [float(one[sample].softmax(-1).max()) for one in outputs]
        ready = [n for n, limit in enumerate(thresholds) if limit is not None and sure[n] >= limit]
        leaves.append(min(ready, default=len(thresholds)))
    return torch.stack([outputs[exit][sample] for sample, exit in enumerate(leaves)]), leaves


def compiled(thresholds: tuple[float | None, ...] = (0.7, 0.8), **options: Any) -> EarlyExitExecutable:
    executable = tersor.compile(MODEL, X[:BATCH], exits=thresholds, **options)
    assert isinstance(executable, EarlyExitExecutable)
    return executable


@pytest.fixture(scope="module")
def shared() -> EarlyExitExecutable:
    return compiled()


@pytest.fixture
def executable(shared: EarlyExitExecutable) -> EarlyExitExecutable:
    """With thresholds of its own."""
    return copy.copy(shared)


def check(executable: EarlyExitExecutable, thresholds: tuple[float | None, ...] = (0.7, 0.8)) -> list[int]:
    """Compare all samples with PyTorch; returns where they leave."""
    found = []
    for x in X.split(BATCH):
        outputs, leaves = expected(x, thresholds)
        output, taken = executable.with_exit(x)
        torch.testing.assert_close(output, outputs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(executable(x), output)
        assert taken.tolist() == leaves
        found += leaves
    return found


# Calls --------------------------------------------------------------------------------------------------------------


def test_each_sample_leaves_where_it_is_sure(executable: EarlyExitExecutable):
    assert set(check(executable)) == {0, 1, 2}, "the samples are meant to leave everywhere"
    for thresholds in ((None, 0.8), (0.7, None), (None, None), (0.0, 0.8)):
        executable.exits = EarlyExits(thresholds)
        check(executable, thresholds)


def test_later_segments_do_not_run(executable: EarlyExitExecutable, monkeypatch: pytest.MonkeyPatch):
    ran: list[int] = []
    run_segment = executable._run_segment

    def watched(number: int, known: list[Tensor]) -> Tensor:
        ran.append(number)
        return run_segment(number, known)

    monkeypatch.setattr(executable, "_run_segment", watched)
    for limit, wanted in ((0.0, [0]), (2.0, [0, 1, 2])):
        executable.exits, ran[:] = EarlyExits((limit, 2.0)), []
        executable(X[:BATCH])
        assert ran == wanted


def test_what_the_model_takes(executable: EarlyExitExecutable):
    numpy_output = executable(X[:BATCH].numpy())
    assert isinstance(numpy_output, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(numpy_output), executable(x=X[:BATCH]))
    with pytest.raises(TersorError, match="input 'x' must have shape"):
        executable(X[:3])
    assert "exits at max-softmax 0.7, 0.8" in repr(executable)


def test_the_whole_program(executable: EarlyExitExecutable):
    with torch.no_grad():
        for one, other in zip(executable.flat(X[:BATCH]), MODEL(X[:BATCH]).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert executable.report.agreement is not None
    assert executable.report.agreement.difference < 1e-4
    assert executable.macs[-1] == executable.graph.cost().macs
    assert list(executable.macs) == sorted(executable.macs)
    assert len(executable.kernel_seconds(X[:BATCH])) == len(executable.info.kernels)
    assert executable.benchmark(repeat=1, warmup=0, min_seconds=0, kernels=True).runs == 1
    executable.threads = 1
    assert [program.threads for program in executable._programs] == [1, 1, 1]


def test_segments_of_integers():
    quantized = compiled(pipeline="O3,quantize{keep=all}", calibration=X[:8], check=False)
    assert any(op.name == "quantize" or (op.body and "quantize" in str(op.body)) for op in quantized.graph.ops)
    for found, other in zip(quantized.flat(X[:BATCH]), quantized.graph.evaluate(X[:BATCH]), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-3)


def test_confidences():
    logits = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, -9.0]])
    for name, function in CONFIDENCES.items():
        flat, sure = function(logits).tolist()
        assert flat == pytest.approx(1 / 3 if name == "max-softmax" else 0.0, abs=1e-6)
        assert sure == pytest.approx(1.0, abs=2e-3)


def first_class(output: Tensor) -> Tensor:
    return output.softmax(-1)[:, 0]


def one_number(output: Tensor) -> Tensor:
    return output.sum()


def test_confidence_of_the_user(executable: EarlyExitExecutable):
    executable.exits = EarlyExits((0.5, 0.5), f"{__name__}:first_class")
    _, taken = executable.with_exit(X[:BATCH])
    with torch.no_grad():
        early = list(MODEL(X[:BATCH]).values())[:2]
    wanted = [next((n for n, one in enumerate(early) if first_class(one)[row] >= 0.5), 2) for row in range(BATCH)]
    assert taken.tolist() == wanted
    executable.exits = EarlyExits((0.5, 0.5), f"{__name__}:one_number")
    with pytest.raises(TersorError, match=r"one_number must return one number for each sample, \[2\], not \[\]"):
        executable(X[:BATCH])


# The artifact -------------------------------------------------------------------------------------------------------


def test_artifact(executable: EarlyExitExecutable, tmp_path: Path):
    executable.exits = EarlyExits((0.6, None), "margin")
    path = executable.save(tmp_path / "exits.tersor")
    loaded = tersor.load(path)
    assert isinstance(loaded, EarlyExitExecutable)
    assert loaded.exits == executable.exits
    assert loaded.macs == executable.macs
    for other in (loaded, pickle.loads(pickle.dumps(loaded)), copy.copy(loaded)):
        for x in X.split(BATCH)[:5]:
            for one, two in zip(other.with_exit(x), executable.with_exit(x), strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=0)
    whole = load_graph(path)
    assert len(whole.outputs) == 3
    torch.testing.assert_close(whole.evaluate(X[:BATCH]), executable.flat(X[:BATCH]), rtol=1e-3, atol=1e-3)
    with zipfile.ZipFile(path) as archive:
        assert {"program-1.so", "program-3.ir", "constants.bin"} <= set(archive.namelist())
    with pytest.raises(TersorError, match="a bundle holds one program, and exits has one for each exit"):
        loaded.save_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["exits"].update(thresholds=[0.5]), "its exits do not fit the graph"),
        (lambda m: m["exits"].update(confidence="nonsense"), "manifest.exits must be EarlyExits or NoneType"),
        (lambda m: m["exits"].update(thresholds=["x", 0.5]), "manifest.exits must be EarlyExits or NoneType"),
        (lambda m: m["programs"].reverse(), "inputs of the manifest are not those of the graph"),
        (lambda m: m.update(exits=None), "of the manifest are not those of the graph"),
    ],
)
def test_forged_artifacts(executable: EarlyExitExecutable, tmp_path: Path, edit: Any, message: str):
    path = executable.save(tmp_path / "exits.tersor")
    with pytest.raises(TersorError, match=message) as caught:
        tersor.load(rewrite(path, tmp_path / "forged.tersor", edit))
    assert "\n" not in str(caught.value)


def test_an_older_artifact_says_nothing_of_exits(tmp_path: Path):
    def edit(manifest: dict[str, Any]) -> None:
        del manifest["exits"]
        manifest["schema"] = 4

    plain = tersor.compile(nn.Linear(2, 2).eval(), torch.zeros(1, 2)).save(tmp_path / "plain.tersor")
    assert not isinstance(tersor.load(rewrite(plain, tmp_path / "older.tersor", edit)), EarlyExitExecutable)


def example() -> tuple[nn.Module, tuple[Tensor]]:
    """What the command line names."""
    return MODEL, (X[:BATCH],)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def tersor_(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return end.value.code, *capsys.readouterr()

    path, name = tmp_path / "exits.tersor", f"{__name__}:example"
    code, out, _ = tersor_("compile", name, "--exits", "0.7,-", "-o", path)
    assert (code, "exits at max-softmax 0.7, never" in out) == (0, True)
    loaded = tersor.load(path)
    assert isinstance(loaded, EarlyExitExecutable)
    check(loaded, (0.7, None))
    np.save(tmp_path / "x.npy", X[:BATCH].numpy())
    code, out, _ = tersor_("run", path, "--input", tmp_path / "x.npy", "--json")
    assert len(json.loads(out)["outputs"]) == 3, "all outputs"
    for text, message in (("0.7", "which needs 2 thresholds, not 1"), ("x,1", "must be numbers such as 0.9,0.8")):
        code, _, error = tersor_("compile", name, "--exits", text, "-o", path)
        assert (code, message in error.splitlines()[-1]) == (2, True)


# Thresholds from data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels() -> Tensor:
    """What the last exit says, but for a few."""
    with torch.no_grad():
        found = MODEL(X)["c"].argmax(-1)
    found[:4] = (found[:4] + 1) % CLASSES
    return found


def test_distribution(executable: EarlyExitExecutable, labels: Tensor):
    _, leaves = expected(X, (0.7, 0.8))
    report = tersor.measure_exits(executable, X, labels)
    assert [one.share for one in report.exits] == [leaves.count(exit) / len(X) for exit in range(3)]
    outputs, _ = expected(X, (0.7, 0.8))
    assert report.score == pytest.approx((outputs.argmax(-1) == labels).double().mean().item())
    assert report.last_score == 0.9
    assert report.macs == pytest.approx(np.mean([executable.macs[exit] for exit in leaves]))
    assert (report.samples, report.batch, report.is_accuracy) == (40, BATCH, True)
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert re.search(
        r"accuracy 90.00% -> \d+\.\d+%, expected multiply-adds \d+ -> \d+ \(0\.\d+\), .* ms a call", lines[-1]
    )
    assert json.loads(json.dumps(report.to_json()))["samples"] == 40


def test_labels_in_the_data_and_none_at_all(executable: EarlyExitExecutable, labels: Tensor):
    def figures(report: ExitReport) -> tuple[float, ...]:
        return (report.score, report.last_score, report.macs, *(one.share for one in report.exits))

    apart = tersor.measure_exits(executable, X, labels)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, labels), batch_size=8)
    assert figures(tersor.measure_exits(executable, loader)) == figures(apart)
    assert figures(tersor.measure_exits(executable, ((x, y) for x, y in loader))) == figures(apart)
    none = tersor.measure_exits(executable, X)
    assert (none.last_score, none.is_accuracy) == (1.0, False)
    assert "agreement with the last exit 100.00%" in str(none)


@pytest.mark.parametrize("max_drop", [0.0, 0.05, 0.2])
def test_thresholds_for_a_drop(executable: EarlyExitExecutable, labels: Tensor, max_drop: float):
    report = tersor.choose_exits(executable, X, labels, max_drop=max_drop)
    assert report.score >= report.last_score - max_drop - 1e-9
    assert report.macs < executable.macs[-1]
    assert tersor.measure_exits(executable, X, labels).macs == report.macs


@pytest.mark.parametrize("macs", [0.9, 0.7])
def test_thresholds_for_operations(executable: EarlyExitExecutable, macs: float):
    first = executable.macs[0] / executable.macs[-1]
    assert first < macs
    report = tersor.choose_exits(executable, X, macs=macs)
    assert report.macs <= macs * executable.macs[-1] * (1 + 1e-9)
    with pytest.raises(
        TersorError, match=rf"macs=0.05 cannot be reached: {first:.3f} of the multiply-adds come before"
    ):
        tersor.choose_exits(executable, X, macs=0.05)


def brute(samples: ExitSamples, max_drop: float) -> float:
    """The fewest multiply-adds over all pairs of thresholds."""
    best, whole = np.inf, samples.scores[-1].mean()
    choices = [[*one, np.inf] for one in samples.confidences]
    for first in choices[0]:
        for second in choices[1]:
            sure = np.stack([samples.confidences[0] >= first, samples.confidences[1] >= second, samples.scores[2] > -1])
            leaves = sure.argmax(0)
            score = samples.scores[leaves, np.arange(len(leaves))].mean()
            if score >= whole - max_drop - 1e-9:
                best = min(best, samples.macs[leaves].mean())
    return float(best)


@pytest.mark.parametrize("seed", range(8))
def test_the_search_is_near_the_best_thresholds(seed: int):
    rng = np.random.default_rng(seed)
    hardness = rng.random(30)
    confidences = np.stack([1 - hardness, 1 - 0.6 * hardness]) + 0.1 * rng.standard_normal((2, 30))
    right = np.stack([rng.random(30) > chance * hardness for chance in (0.9, 0.5, 0.2)]).astype(float)
    samples = ExitSamples(confidences, right, np.array([1.0, 2.0, 4.0]))
    for max_drop in (0.0, 0.1):
        thresholds = find_thresholds(samples, max_drop, None)
        sure = [one >= (np.inf if limit is None else limit) for one, limit in zip(confidences, thresholds, strict=True)]
        leaves = np.stack([*sure, np.ones(30, bool)]).argmax(0)
        assert right[leaves, np.arange(30)].mean() >= right[2].mean() - max_drop - 1e-9
        assert samples.macs[leaves].mean() <= 1.15 * brute(samples, max_drop)


# What is refused ----------------------------------------------------------------------------------------------------


class TwoTypes(Exits):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a = self.stem(x)
        return self.heads[0](a), self.middle(a)


class Counting(Exits):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MODEL, {"exits": (0.5,)}, "the model returns 3 outputs, which needs 2 thresholds, not 1"),
        (MODEL, {"exits": 0.5}, r"exits: give a threshold for each output but the last, as in \(0.9, 0.8\), not 0.5"),
        (MODEL, {"exits": (0.5, "x")}, "a threshold is a number, or None for an exit that is never taken, not 'x'"),
        (MODEL, {"exits": (0.5, 0.5), "tune": 8}, "exits: tune the model without them"),
        (
            MODEL,
            {"exits": (0.5, 0.5), "dynamic_shapes": {"x": {0: "n"}}},
            "cannot stop early, since its shapes are dynamic",
        ),
        (Counting().eval(), {"exits": (0.5, 0.5)}, "cannot stop early, since it updates buffers"),
        (TwoTypes().eval(), {"exits": (0.5,)}, "outputs must be of one type; output 0 is f32"),
    ],
)
def test_refusals(model: nn.Module, options: dict[str, Any], message: str):
    with pytest.raises(TersorError, match=message) as caught:
        tersor.compile(model, X[:BATCH], **options)
    assert "\n" not in str(caught.value)


def test_refusals_of_exits():
    with pytest.raises(ValueError, match="unknown confidence 'max-sofmax'; did you mean 'max-softmax'"):
        EarlyExits((0.5,), "max-sofmax")
    with pytest.raises(ValueError, match="give a threshold for each output but the last"):
        EarlyExits(())


def test_refusals_of_data(executable: EarlyExitExecutable, labels: Tensor):
    for given, message in (
        ({}, "say either how much of the score may be lost"),
        ({"max_drop": 0.1, "macs": 0.5}, "say either how much of the score may be lost"),
        ({"max_drop": 1.0}, "max_drop is a share of the samples"),
        ({"macs": 1.0}, "macs is the ratio of multiply-adds to leave"),
        ({"max_drop": 0.1, "labels": labels[:39]}, "labels: none for sample 39; give one for each sample"),
        ({"max_drop": 0.1, "labels": labels.float()}, "labels must be the numbers of classes, not torch.float32"),
    ):
        with pytest.raises(TersorError, match=message):
            tersor.choose_exits(executable, X, **given)
    with pytest.raises(TersorError, match=r"labels: 40 for 38 samples; give one for each"):
        tersor.measure_exits(executable, X[:38], labels)
    plain = tersor.compile(nn.Linear(2, 2).eval(), torch.zeros(1, 2))
    with pytest.raises(TersorError, match=r"this program has no exits; compile the model with exits="):
        tersor.measure_exits(plain, X)  # type: ignore[arg-type]
