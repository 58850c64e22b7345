"""``tersor analyze sensitivity``: what it prints and writes, and that every mistake is one line and exit code 2."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tersor.cli.main import main
from tersor.cli.sensitivity_table import sensitivity_lines
from tersor.compression.sensitivity.page import render
from tersor.passes.sensitivity import LossCurve, LossPoint, ScannedAxis, SensitivityScan, read_scan

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

def mean(model):
    return float(torch.sigmoid(model(torch.ones(2, 3, 6, 6))).mean())

calls = []

def interrupted(model):
    calls.append(model)
    if len(calls) == 3:
        raise KeyboardInterrupt
    return 0.5
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tersor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command beside the module."""
    (tmp_path / "tersor_analyze_me.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        sys.modules.pop("tersor_analyze_me", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(["analyze", "sensitivity", *map(str, arguments)])
        printed = capsys.readouterr()
        return int(exit.value.code or 0), printed.out, printed.err

    return run


def arguments(*more: object, data: str = "tersor_analyze_me:batches") -> list[object]:
    return ["tersor_analyze_me:make", "--data", data, *more]


class Page(HTMLParser):
    """Collects text, and checks that tags are balanced and nothing is loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}, "the page must need no other file"
        if tag not in ("meta", "br", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "line":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_table_page_and_json(tersor: Run, tmp_path: Path) -> None:
    code, out, err = tersor(*arguments("-o", "scan.json", "--evaluate", "tersor_analyze_me:mean"))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "bits: change of the outputs, relative, by bits of a layer's weight, or of its input"
    assert lines[1].split() == ["layer", "8", "6", "4", "3", "2", "input", "8"]
    assert [line.split()[0] for line in lines[2:4]] == ["0", "3"]
    assert re.search(r"^channels: score by tersor_analyze_me:mean, \d\d\.\d\d% as it is$", out, re.MULTILINE)
    assert re.search(r"^most sensitive at 50%: 0 0\.\d+$", out, re.MULTILINE)
    assert "layers that cannot be changed: 1; --verbose says why" in out
    assert "tersor_analyze_me on" not in out and "on 8 batches of tersor_analyze_me:batches" in out
    assert lines[-1] == "wrote scan.json and scan.html"
    assert not set("─│┃┏") & set(out)
    assert "bits: plan" in err and "score " in err
    scan = read_scan(tmp_path / "scan.json")
    assert [axis.name for axis in scan.axes] == ["bits", "channels", "ranks", "zeros"]
    text = (tmp_path / "scan.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for words in ("channels", "Layers that cannot be changed (1)", "tersor_analyze_me:mean", "3 (spatial)"):
        assert words in page.words, words
    assert text.count("<svg") == 4 and text.count("<polyline") == 2 + 1 + 4 + 2
    assert not list(tmp_path.glob(".tersor-*"))


def test_json_on_stdout(tersor: Run) -> None:
    code, out, _ = tersor(*arguments("--axes", "channels", "--settings", "channels=0.25,0.5", "--batches", 3, "--json"))
    found = json.loads(out)
    assert code == 0 and found["output"] is None and found["batches"] == 3
    (axis,) = found["axes"]
    assert [point["label"] for point in axis["curves"][0]["points"]] == ["25%", "50%"]


def test_batch_norms_are_measured_again(tersor: Run, tmp_path: Path) -> None:
    code, out, _ = tersor(*arguments("--axes", "channels", "--reestimate", "-o", "scan.json"))
    assert code == 0 and "batch norms measured again on them" in out
    assert read_scan(tmp_path / "scan.json").reestimated
    assert "batch norms measured again" in (tmp_path / "scan.html").read_text()


def test_the_scan_leads_passes(tersor: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert tersor(*arguments("--axes", "channels", "-o", "scan.json"))[0] == 0
    with pytest.raises(SystemExit) as exit:
        main(["passes", "prune-channels"])
    assert not exit.value.code and "sensitivity: str | None" in capsys.readouterr().out


def test_ctrl_c_while_models_are_scored(tersor: Run, tmp_path: Path) -> None:
    code, out, _ = tersor(*arguments("-o", "scan.json", "--evaluate", "tersor_analyze_me:interrupted"))
    assert code == 130
    assert re.search(r"^stopped: interrupted: 1 of \d+ models are scored$", out, re.MULTILINE)
    scan = read_scan(tmp_path / "scan.json")
    assert scan.is_interrupted and scan.axes[0].curves[0].points[0].score == 0.5
    assert "interrupted: 1 of" in (tmp_path / "scan.html").read_text()


def test_ctrl_c_before(tersor: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.compression.sensitivity.scan.errors", interrupt)
    code, _, err = tersor(*arguments("-o", "scan.json"))
    assert code == 130 and "interrupted before all errors were measured: nothing is written" in err
    assert not list(tmp_path.glob("scan.*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--axes", "chanels"], "axes: unknown axis 'chanels'; did you mean 'channels'?"),
        (["--axes", ""], "axes: none is given; choose from bits, channels, ranks, zeros"),
        (["--settings", "channels"], "--settings channels: must be AXIS=NUMBER,NUMBER,…"),
        (["--settings", "channels=a"], "--settings channels=a: must be AXIS=NUMBER,NUMBER,…"),
        (["--settings", "width=1"], "axes: unknown axis 'width'"),
        (["--settings", "channels=nan"], "a share of channels that goes is above 0 and below 1, not nan"),
        (["--settings", "bits=inf"], "bits are a whole number from 2 to 16, not inf"),
        (["--criterion", "l3"], "unknown criterion 'l3'; did you mean"),
        (["--batches", "0"], "batches must be 1 or more, not 0"),
        (["--seconds", "3"], "seconds limits what scores take"),
        (["-o", "absent/scan.json"], "absent is not an existing directory"),
        (["-o", "a.html", "--report", "a.html"], "a.html is the output already; give the report another name"),
        (["--evaluate", "tersor_analyze_me:men"], "has no 'men'; did you mean 'mean'?"),
    ],
)
def test_mistakes(tersor: Run, given: list[str], message: str) -> None:
    code, out, err = tersor(*arguments(*given))
    (line,) = (line for line in err.splitlines() if line.startswith("tersor: "))
    assert code == 2 and out == "" and message in line and "Traceback" not in err


def test_no_data(tersor: Run) -> None:
    code, _, err = tersor("tersor_analyze_me:make")
    assert code == 2 and "tersor: sensitivity needs examples of inputs: give --data" in err
    code, _, err = tersor(*arguments(data="tersor_analyze_me:nothing"))
    assert code == 2 and "tersor: tersor_analyze_me:nothing: yields no batch" in err


# Tables -----------------------------------------------------------------------------------------------------------


def scan_of(*names: str, columns: int = 9) -> SensitivityScan:
    points = tuple(LossPoint(f"{10 * (i + 1)}%", 0.1 * (i + 1), "", 1.2e-5 * 5**i) for i in range(columns))
    axis = ScannedAxis("channels", "share", tuple(LossCurve(name, "l1", (name,), (10,), points) for name in names))
    return SensitivityScan("<net>", (axis,), "data & more", 2)


@pytest.mark.parametrize("width", [40, 80, 120, 10_000])
@pytest.mark.parametrize("length", [3, 20, 38, 60, 79])
def test_names_are_never_cut(width: int, length: int) -> None:
    name = ("features.block." * 9)[: length - 1] + "!"
    lines = list(sensitivity_lines(scan_of(name, "a"), width, verbose=True))
    assert any(line.split()[:1] == [name] for line in lines)
    assert max(map(len, lines[1:-3])) <= max(width, length)
    figures = [line for line in lines if line.endswith("4.7")]  # the last setting is always there
    assert len(figures) == 2
    assert len({line.index("4.7") for line in figures}) == 1  # in one column
    shown = len(re.findall(r"\d+%", lines[1]))
    assert (shown < 9) == any("of 9 settings" in line for line in lines)
    if width == 120 and length <= 38:
        assert shown == 9


def test_the_page_shows_foreign_text_as_text() -> None:
    text = render(scan_of("<script>alert(1)</script>"))
    assert "<script>" not in text and "&lt;net&gt;" in text and "data &amp; more" in text
    assert Page(text).open == []
