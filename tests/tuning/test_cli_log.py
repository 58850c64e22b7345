"""``tersor log``: tables and JSON, and one clear line for every user's mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tersor.cli.main import main
from tersor.ir.codec import encode
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.option import Workload
from tersor.targets.tuning.log import append, log_files, read_log
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.task import Task

ZNVER4 = resolve_cpu("x86:znver4")
WORKLOAD = Workload("conv2d", Conv2dSpec(1, 32, 14, 14, 64))
OPTIONS = Options(WORKLOAD, ZNVER4)


def record(index: int, seconds: float, cores: int = 2) -> Record:
    task = Task(WORKLOAD, "graph @g() {\n  return\n}\n", replace(ZNVER4, cores=cores), location="layer1.conv")
    return Record.now(task, Outcome(OPTIONS[index], "ok", seconds, 0.01, 7, 2e-3, "", 0.1))


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    append(folder, [*map(record, (1, 1, 1, 2), (1e-3, 1.1e-3, 1.05e-3, 3e-3)), record(1, 1e-3, cores=1)])
    with log_files(folder)[0].open("a", encoding="utf-8") as file:
        file.write("broken\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


def test_stats(log_dir, capsys):
    code, out, _ = run(capsys, "log", "stats", log_dir)
    assert code == 0
    assert "x86:znver4" in out
    assert f"{log_files(log_dir)[0]}:6: Expecting value" in out
    code, out, _ = run(capsys, "log", "stats", log_dir, "--json")
    first, second = json.loads(out)["targets"]
    assert (first["threads"], first["records"]) == (1, 1)
    assert (second["threads"], second["records"], second["workloads"], second["improved"]) == (2, 4, 1, 1)
    assert second["statuses"] == {"ok": 4}


def test_best(log_dir, capsys):
    code, out, _ = run(capsys, "log", "best", log_dir, "--target", "x86:znver4")
    assert code == 0
    assert "layer1.conv" in out
    assert "ignored 1 record: made for 1 thread" in out
    _, out, _ = run(capsys, "log", "best", log_dir, "--target", "x86:znver4", "--json")
    (row,) = json.loads(out)["best"]
    assert row["option"] == encode(OPTIONS[1])
    assert row["workload"] == encode(WORKLOAD)
    assert row["gain"] == pytest.approx(2e-3 / 1.05e-3, rel=0.1)
    _, out, _ = run(capsys, "log", "best", log_dir, "--target", "x86:znver4", "--threads", "1", "--json")
    assert json.loads(out)["best"] == []  # measured only once


def test_merge(log_dir, tmp_path, capsys):
    code, out, _ = run(capsys, "log", "merge", log_dir, "--into", tmp_path / "all")
    assert code == 0
    assert "added 5 records" in out
    _, out, _ = run(capsys, "log", "merge", log_files(log_dir)[0], "--into", tmp_path / "all", "--json")
    assert json.loads(out)["added"] == 0
    assert len(read_log(tmp_path / "all").records) == 5


def test_prune(log_dir, capsys):
    code, out, _ = run(capsys, "log", "prune", log_dir, "--keep", "1")
    assert code == 0
    assert "kept 4 records, dropped 2" in out
    assert "1 slow" in out
    assert "1 damaged" in out
    assert not read_log(log_dir).problems
    _, out, _ = run(capsys, "log", "prune", log_dir, "--json")
    assert json.loads(out) == {"kept": 4, "dropped": {}}


def test_prune_keeps_the_option_that_is_used_though_others_were_timed_faster_once(log_dir, capsys):
    append(log_dir, [record(3, 0.5e-3)])
    run(capsys, "log", "prune", log_dir, "--keep", "1")
    _, out, _ = run(capsys, "log", "best", log_dir, "--target", "x86:znver4", "--json")
    (row,) = json.loads(out)["best"]
    assert row["option"] == encode(OPTIONS[1])


def test_pack(log_dir, capsys, tmp_path):
    code, out, _ = run(capsys, "log", "pack", log_dir)
    assert code == 0
    assert f"{log_files(log_dir)[0]}: 1 KiB" in out.replace("\n", "")
    code, out, _ = run(capsys, "log", "pack", log_dir, "--json")
    (path,) = log_files(log_dir)
    assert json.loads(out) == {"packed": {str(path): path.stat().st_size}}
    (tmp_path / "empty").mkdir()
    code, out, _ = run(capsys, "log", "pack", tmp_path / "empty")
    assert (code, "holds no records" in out) == (0, True)


@pytest.mark.parametrize("command", ["stats", "best", "merge", "prune", "pack"])
def test_help_has_examples(command, capsys):
    code, out, _ = run(capsys, "log", command, "--help")
    assert code == 0
    assert f"tersor log {command}" in out.split("Examples:")[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stats", "none"), "none: no such folder; `tersor tune` makes one"),
        (("best", "{log_dir}", "--target", "x86:znver6"), "unknown target 'x86:znver6'; did you mean 'x86:znver5'"),
        (("stats", "{log_dir}", "--target", "znver4"), "unknown target 'znver4'"),
        (("pack", "none"), "none: no such folder; `tersor tune` makes one"),
        (("merge", "none.jsonl", "--into", "{log_dir}"), "none.jsonl: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(log_dir, capsys, arguments, message):
    code, out, err = run(capsys, "log", *(text.format(log_dir=log_dir) for text in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
