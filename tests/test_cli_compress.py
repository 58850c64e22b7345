"""``tersor compress``: what it prints and writes, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tersor as package
from tersor.cli.main import main
from tersor.cli.options import load_named
from tersor.compression.page import render
from tersor.compression.result import Compressed, End, Setting, Step
from tersor.ir import Refusal
from tersor.passes import PassRecord
from tersor.passes.report import Times, Verdict
from tersor.targets.tuning.timing import Timing
from tersor.tests.passes.lowrank.planted import Clock

MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten(1))
    return net.eval(), (torch.zeros(1, 3, 6, 6),)

def batches():
    generator = torch.Generator().manual_seed(1)
    yield from (torch.randn(4, 3, 6, 6, generator=generator) for _ in range(2))

def nothing():
    return []

def crowded():
    yield torch.zeros(1, 3, 6, 6), torch.zeros(1), torch.zeros(1)

def broken():
    raise RuntimeError("no such data set")

calls = []

def falling(model):
    calls.append(model(torch.zeros(2, 3, 6, 6)).shape)
    return 1.0 - 0.1 * (len(calls) - 1)

def nan(model):
    return float("nan")

def text(model):
    return "good"

def failing(model):
    raise KeyError("label")
"""
PRUNE, FACTORIZE = "prune-channels{multiple=4}", "low-rank{ranks=fixed:4,multiple=4}"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tersor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``tersor compress`` beside the module; nothing is timed."""
    (tmp_path / "tersor_compress_me.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tersor.compression.session.latency_of", lambda *_: Clock())
    monkeypatch.setattr(
        "tersor.compression.judge.measure",
        lambda candidate, incumbent, policy: Timing(1e-3 if incumbent is None else 4e-4, 0.01, 9, 1e-3),
    )

    def run(*arguments: object) -> tuple[int, str, str]:
        import sys

        sys.modules.pop("tersor_compress_me", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["compress", *map(str, arguments)])
        printed = capsys.readouterr()
        return int(exit.value.code or 0), printed.out, printed.err

    return run


def arguments(pipeline: str = f"O3,{PRUNE},{FACTORIZE}", **options: object) -> list[object]:
    given = {"pipeline": pipeline, "data": "tersor_compress_me:batches", "threads": 1, "output": "m.tersor", **options}
    shown = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    return ["tersor_compress_me:make", *(part for name, value in shown.items() for part in (f"--{name}", value))]


class Page(HTMLParser):
    """Collects text, and checks that tags are balanced and nothing is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "the page must need no other file"
        if tag not in ("meta", "br", "rect", "circle", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "circle", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_table_page_and_artifact(tersor: Run, tmp_path: Path) -> None:
    code, out, err = tersor(*arguments(evaluate="tersor_compress_me:falling"))
    assert code == 0, err
    lines = out.splitlines()
    rows = [line for line in lines if re.match(r"(original|prune-channels|low-rank) ", line)]
    assert [row.split()[0] for row in rows] == ["original", "prune-channels", "low-rank"]
    assert max(map(len, rows)) <= 80
    assert rows[-1].startswith("low-rank *")
    assert "80.00%" in rows[-1]
    assert "2.50x" in rows[-1]
    assert re.search(r"^prune-channels: \d of \d rewrites are faster, \d undone$", out, re.MULTILINE)
    assert f"kept {FACTORIZE}: 2.50x faster" in out
    assert lines[-1] == "wrote m.tersor and m.html"
    assert f"{PRUNE}: " in err
    text = (tmp_path / "m.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for words in ("2.50x", "-20.00", "Decisions", "tersor_compress_me:falling", "stays", PRUNE):
        assert words in page.words, words
    assert text.count("<svg") == 4
    assert "url(" not in text
    assert len(package.load(tmp_path / "m.tersor").graph.outputs) == 1


def test_json_holds_every_decision(tersor: Run, tmp_path: Path) -> None:
    code, out, _ = tersor(*arguments(report="r.html"), "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["end"], result["kept"], result["output"], result["report"]) == ("complete", 2, "m.tersor", "r.html")
    assert result["steps"][1]["latency"]["speedup"] == pytest.approx(2.5)
    verdicts = [one for step in result["steps"] for record in step["passes"] for one in record["verdicts"]]
    assert {"name", "stays", "fault", "macs_before", "macs_after", "times", "error"} <= set(verdicts[0])
    assert [one["is_whole"] for one in verdicts].count(True) == 2
    assert (tmp_path / "r.html").is_file()
    assert not (tmp_path / "m.html").exists()


def test_the_module_for_further_training(tersor: Run, tmp_path: Path) -> None:
    code, out, err = tersor(*arguments(f"{PRUNE},O3,quantize", to_torch="m.pt2"))
    assert code == 0, err
    assert out.splitlines()[-1] == f"wrote m.pt2, the module after {PRUNE}"
    state = torch.export.load(tmp_path / "m.pt2").state_dict
    assert set(state) == {f"{layer}.{name}" for layer in (0, 1, 3) for name in ("weight", "bias")} | {
        "1.running_mean",
        "1.running_var",
    }
    assert state["0.weight"].shape[0] < 16
    assert load_named("m.pt2")[0].inputs[0].name == "input"


def test_max_drop(tersor: Run, tmp_path: Path) -> None:
    code, out, _ = tersor(*arguments(evaluate="tersor_compress_me:falling", max_drop=0.15))
    assert code == 0
    assert f"stopped: {FACTORIZE} lowers the score from 100.00% to 80.00%, by more than 0.15; kept the model" in out
    page = Page((tmp_path / "m.html").read_text(encoding="utf-8"))
    assert "drops too far" in page.words
    assert "limit 85.00%" in page.words


def test_verbose_prints_all_notes(tersor: Run) -> None:
    _, out, _ = tersor(*arguments(f"O3,{PRUNE}"), "--verbose")
    assert "prune-channels: parameters " in out


def test_data_files(tersor: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(1, 3, 6, 6)).astype(np.float32))
    code, _, err = tersor(*arguments("O3,quantize{keep=all}", data="a.npy"), "--data", "a.npy")
    assert code == 0, err


def test_a_step_that_fails_later(tersor: Run, tmp_path: Path) -> None:
    code, out, err = tersor(*arguments(f"O3,{PRUNE},low-rank{{ranks=macs:0.001}}"))
    assert code == 2
    assert "prune-channels *" in out
    assert "stopped: low-rank{ranks=macs:0.001}: pass 'low-rank' failed: " in out
    assert err.splitlines()[-1].startswith("tersor: low-rank{ranks=macs:0.001}: pass 'low-rank' failed: ")
    assert package.load(tmp_path / "m.tersor").graph
    assert (tmp_path / "m.html").is_file()


def test_ctrl_c(tersor: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object, stage: str) -> None:
        if stage == f"judge {interrupted}":
            raise KeyboardInterrupt

    monkeypatch.setattr("tersor.cli.compress_progress.StepsShown.begin", interrupt)
    interrupted = FACTORIZE
    code, out, _ = tersor(*arguments())
    assert code == 130
    assert f"stopped: interrupted during {FACTORIZE}" in out
    assert (tmp_path / "m.tersor").is_file()
    (tmp_path / "m.tersor").unlink()
    interrupted = PRUNE
    code, out, err = tersor(*arguments())
    assert (code, out) == (130, "")
    assert "interrupted before the first step was made: nothing is written" in err
    assert not (tmp_path / "m.tersor").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "tersor_compress_me:nothing"}, "tersor_compress_me:nothing: yields no batch"),
        ({"data": "tersor_compress_me:crowded"}, "batch 0 does not fit: "),
        ({"data": "tersor_compress_me:broken"}, "broken: raised RuntimeError: no such data set"),
        ({"data": "tersor_compress_me:batch"}, "did you mean 'batches'?"),
        ({"data": "nothing.npy"}, "nothing.npy: no such file"),
        ({"data": None, "pipeline": "O3,quantize"}, "needs calibration data"),
        ({"evaluate": "tersor_compress_me:nan"}, "tersor_compress_me:nan: returned nan; return a finite number"),
        ({"evaluate": "tersor_compress_me:text"}, "tersor_compress_me:text: returned a str; return a number"),
        ({"evaluate": "tersor_compress_me:failing"}, "failing: raised KeyError: 'label'"),
        ({"evaluate": "tersor_compress_me:calls"}, "is a list; name a function that takes a model"),
        ({"evaluate": "accuracy"}, "accuracy: is not of the form package.module:function"),
        ({"max_drop": 0.01}, "max_drop needs evaluate"),
        ({"evaluate": "tersor_compress_me:falling", "max_drop": "nan"}, "max_drop must be 0 or more"),
        ({"pipeline": "O3"}, "has no pass that compresses"),
        ({"pipeline": "O3,prune-chanels"}, "did you mean 'prune-channels'?"),
        ({"pipeline": "O3,prune-channels{macs=0.001,multiple=1}"}, "macs=0.001 would empty a layer"),
        ({"target": "x86:znver6"}, "did you mean 'x86:znver5'?"),
        ({"output": "nowhere/m.tersor"}, "nowhere is not an existing directory; create it first"),
        ({"report": "nowhere/m.html"}, "nowhere is not an existing directory; create it first"),
        ({"report": "m.tersor"}, "m.tersor is the output already"),
        ({"to_torch": "m.pth"}, "m.pth: a module is written as .pt2 (a program of torch.export) or .safetensors"),
        ({"to_torch": "nowhere/m.pt2"}, "nowhere is not an existing directory; create it first"),
        ({"to_torch": "m.pt2", "pipeline": "O3,quantize"}, "--to-torch: this pipeline makes no smaller network"),
        ({"plugin": "tersor_no_plugin"}, "plugin 'tersor_no_plugin' cannot be imported"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(options: dict, message: str, tersor: Run, tmp_path: Path) -> None:
    code, out, err = tersor(*arguments(**options))
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("tersor: ")
    assert message in last
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".tersor", ".html")] == []


def test_names_cannot_write_the_page() -> None:
    name = '<b onload="x">&amp;'
    verdict = Verdict(name, False, name, 2, 1, Times(1e-3, 2e-3, 0.1))
    records = (PassRecord(name, name, True, 1.0, 1, 1, refused=(Refusal("rule", name, name),), verdicts=(verdict,)),)
    steps = tuple(Step(one, 1, 1, 1, None, None, 0.0, records=records) for one in (name, f"{name}2"))
    setting = Setting(name, name, name, 1, name, name, None, name, {name: name}, name)
    unused: Any = None
    text = render(Compressed(unused, steps, 0, End.FAILED, name, setting, unused, name, Path(name)))
    page = Page(text)
    assert page.open == []
    assert "onload" in "".join(page.words)
    assert name not in text
