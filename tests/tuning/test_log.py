"""Records on disk: nothing is lost, nothing foreign is used, every bad line is named."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from tersor.cli import log_management as manage
from tersor.ir.codec import encode
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates import registry
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.option import Option, Workload
from tersor.targets.tuning import log, tuned
from tersor.targets.tuning.log import LogError, append, append_lines, log_files, read_log, target_folder
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record, best, fitting
from tersor.targets.tuning.task import Task

ZNVER4 = resolve_cpu("x86:znver4")
WORKLOAD = Workload("conv2d", Conv2dSpec(1, 32, 14, 14, 64))
OPTIONS = Options(WORKLOAD, ZNVER4)
TASK = Task(WORKLOAD, "graph @conv() {\n  return\n}\n", ZNVER4, weight=2, macs=10, bytes=20, location="layer1.conv")


def record(index: int = 1, seconds: float = 1e-3, baseline: float = 2e-3, **changes: Any) -> Record:
    outcome = Outcome(OPTIONS[index], "ok", seconds, 0.01, 7, baseline, "", 0.1)
    return Record.now(replace(TASK, **changes), outcome)


def write(log_dir: Path, *lines: str, target: str = "x86:znver4") -> Path:
    path = target_folder(log_dir, target) / "records.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def line(**changes: Any) -> str:
    return json.dumps({**json.loads(log.record_line(record())), **changes})


def test_records_come_back(tmp_path):
    failed = Record.now(TASK, Outcome(OPTIONS[3], "crash", detail="signal 11"), "final")
    written = [record(), record(2, 5e-4), failed]
    append(tmp_path, written[:1])
    append(tmp_path, written[1:])
    content = read_log(tmp_path, "x86:znver4")
    assert log_files(tmp_path) == [tmp_path / "x86-znver4" / "records.jsonl"]
    assert content.records[:2] == tuple(written[:2])
    assert content.records[2].outcome.detail == "signal 11"
    assert math.isnan(content.records[2].outcome.seconds)
    assert content.records[2].purpose == "final"
    assert not content.problems
    assert read_log(tmp_path).records[:2] == tuple(written[:2])


def test_a_missing_log_is_empty(tmp_path):
    assert read_log(tmp_path / "none").records == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1, 2]", "no record: it has no schema version"),
        ('{"schema": "1"}', "no record: it has no schema version"),
        ('{"schema": 1}', "no record: it lacks 'outcome'"),
        (line(purpose="other"), "purpose must be one of ['trial', 'final', 'random'], not 'other'"),
        (line(provenance={"template_version": 1}), "provenance lacks 'tvm'"),
        (line(outcome={**encode(record().outcome), "seconds": -1.0}), "outcome: seconds must be positive, not -1.0"),
        (
            line(outcome={**encode(record().outcome), "baseline": 0}),
            "outcome: baseline must be positive or null, not 0",
        ),
        (line(outcome={**encode(record().outcome), "baseline": 10**400}), "too large"),
        (
            line(outcome={**encode(record().outcome), "option": {"template": []}}),
            "the template must be a name, not []",
        ),
        (line(outcome={**encode(record().outcome), "status": "fine"}), "outcome.status must be one of"),
        (line(task={**encode(TASK), "weight": "2"}), "task.weight must be a whole number, not '2'"),
        ("\x00\xff", "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_damaged_lines_are_named_and_skipped(tmp_path, text, reason):
    path = write(tmp_path, line(), text, line())
    content = read_log(tmp_path)
    assert len(content.records) == 2
    (problem,) = content.problems
    assert problem.startswith(f"{path}:2: ")
    assert reason in problem
    assert "\n" not in problem


def test_lines_of_other_versions_are_counted(tmp_path):
    option = encode(OPTIONS[1])
    outcome = encode(record().outcome)
    write(
        tmp_path,
        line(),
        line(schema=2),
        line(schema=2, task="whatever"),
        line(extra=1),
        line(outcome={**outcome, "option": {**option, "template": "conv2e"}}),
        line(outcome={**outcome, "option": {**option, "knobs": {**option["knobs"], "depth": 3}}}),
        line(provenance={**encode(record().provenance), "template_version": 99}),
    )
    content = read_log(tmp_path)
    assert len(content.records) == 1
    assert content.problems == ()
    assert content.ignored == {
        "written by a later version of Tersor (schema 2)": 2,
        "unknown template 'conv2e'; did you mean 'conv2d'?": 1,
        "knobs has an unknown field 'depth'": 1,
        "record has an unknown field 'extra'": 1,
        "made by version 99 of the template conv2d": 1,
    }


def test_records_for_something_else_are_ignored_with_reasons(monkeypatch):
    here = record()
    found = fitting(
        [
            here,
            record(target=resolve_cpu("x86:avx2")),
            record(target=replace(ZNVER4, cores=1)),
            record(target=replace(ZNVER4, vector_registers=16)),
            record(target=replace(ZNVER4, l3_bytes=1)),  # of the same make, with another cache
            replace(here, provenance=replace(here.provenance, tvm="0.26.0")),
        ],
        ZNVER4,
    )
    assert [one.task.target.l3_bytes for one in found.records] == [ZNVER4.l3_bytes, 1]
    assert found.ignored == {
        "made for x86:avx2": 1,
        "made for 1 thread": 1,
        "made for another definition of x86:znver4": 1,
        "made with TVM 0.26.0": 1,
    }
    small = replace(ZNVER4, l1_bytes=8 << 10, l2_bytes=8 << 10)
    (blocked, *_) = [one for one in Options(WORKLOAD, small) if one not in OPTIONS]
    elsewhere = replace(record(target=small), outcome=replace(here.outcome, option=blocked))
    assert fitting([record(target=small), elsewhere], ZNVER4).ignored == {
        "made beside another default, that of other caches": 1,
        "of options that do not suit the caches": 1,
    }
    monkeypatch.setitem(registry.TEMPLATES, "conv2d", replace(registry.TEMPLATES["conv2d"], version=7))
    assert fitting([here], ZNVER4).ignored == {"made by version 1 of the template conv2d": 1}


def visits(index: int, *seconds: float, baseline: float = 2e-3) -> list[Record]:
    """One option, measured several times in this order."""
    made = [record(index, one, baseline) for one in seconds]
    times = [f"2025-01-01T00:00:0{second}.000+00:00" for second in range(len(made))]
    return [replace(one, provenance=replace(one.provenance, time=t)) for one, t in zip(made, times, strict=True)]


def test_the_best_option_was_confirmed_twice():
    assert best(visits(1, 1e-3)) == {}
    assert best(visits(1, 1e-3, 1e-3)) == {}
    assert best(visits(1, 1e-3, 1e-3, 1e-3))[WORKLOAD].option == OPTIONS[1]
    assert best(visits(1, 1.99e-3, 1.99e-3, 1.99e-3)) == {}  # within noise
    assert best(visits(1, 1e-3, 1e-3, 1e-3, baseline=math.nan)) == {}  # compared with nothing
    both = [*visits(1, 1e-3, 1e-3, 1e-3), *visits(2, 9e-4, 9e-4, 9e-4), *visits(3, 1e-4)]
    assert best(both)[WORKLOAD].option == OPTIONS[2]
    drifted = [*visits(1, 4e-3, 4e-3, 4e-3, baseline=8e-3), *visits(2, 3e-3, 3e-3, 3e-3, baseline=4e-3)]
    assert best(drifted)[WORKLOAD].option == OPTIONS[1]  # slower seconds, better ratio


def test_luck_does_not_make_a_winner():
    assert best(visits(1, 1e-3, 2e-3, 2e-3)) == {}  # the visit that found it does not count, …
    assert best(reversed(visits(1, 1e-3, 2e-3, 2e-3))) == {}  # … wherever it stands
    assert best(visits(1, 1.9e-3, 1.9e-3, 2.1e-3, 1.94e-3)) == {}  # 3 % faster at the median, 10 % apart
    assert best(visits(1, 1.9e-3, 1.94e-3, 1.95e-3, 1.94e-3)) != {}  # 3 % faster, 1 % apart


# Writing ------------------------------------------------------------------------------------------------------------


def test_a_torn_line_costs_only_itself(tmp_path):
    append(tmp_path, [record()])
    path = log_files(tmp_path)[0]
    with path.open("a", encoding="utf-8") as file:
        file.write(line()[:50])  # killed here
    append(tmp_path, [record(2)])
    content = read_log(tmp_path)
    assert [one.option for one in content.records] == [OPTIONS[1], OPTIONS[2]]
    assert [problem.split(": ")[0] for problem in content.problems] == [f"{path}:2"]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    append(tmp_path, [record()])
    path = log_files(tmp_path)[0]
    before = path.read_bytes()
    real_write, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real_write(descriptor, data[:100])  # what still fits
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log.os, "write", full)
    with pytest.raises(LogError, match=r"records\.jsonl: cannot be written \(No space left on device\); make room"):
        append(tmp_path, [record(2)])
    assert path.read_bytes() == before
    monkeypatch.undo()
    append(tmp_path, [record(3)])
    assert [one.option for one in read_log(tmp_path).records] == [OPTIONS[1], OPTIONS[3]]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot be written"):
        append(tmp_path / "file", [record()])


def _write_fifty(path: Path, begin: int, together: Barrier) -> None:
    together.wait()
    filler = "x" * 3000
    for index in range(begin, begin + 50):
        append_lines(path, [f'{{"index": {index}, "filler": "{filler}"}}'])


def _check_survivors(log_dir: Path, kills: int) -> None:
    """Kill sessions of `tersor tune` at random moments: all that they acknowledged is in the log, which reads."""
    program = "from tersor.tests.tuning.killable import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(log_dir), str(kills)], stdout=subprocess.PIPE, text=True, check=True
    )
    sessions = [json.loads(text) for text in ended.stdout.splitlines()]
    assert [session["signal"] for session in sessions] == [signal.SIGKILL] * kills
    acknowledged = [name for session in sessions for name in session["names"]]
    content = read_log(log_dir)
    found = [one.outcome.detail for one in content.records]
    assert len(acknowledged) >= kills
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found)) <= len(acknowledged) + kills  # at most one was not acknowledged any more
    assert len(content.problems) <= kills and not content.ignored


def test_a_killed_session_loses_nothing_measured(tmp_path):
    _check_survivors(tmp_path, 2)


@pytest.mark.slow
def test_twenty_killed_sessions_lose_nothing_measured(tmp_path):
    _check_survivors(tmp_path, 20)


def test_two_writers_at_once(tmp_path):
    path = tmp_path / "records.jsonl"
    fork = multiprocessing.get_context("fork")  # new processes would import PyTorch and TVM first
    together = fork.Barrier(2)
    writers = [fork.Process(target=_write_fifty, args=(path, begin, together)) for begin in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    found = [json.loads(text)["index"] for text in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(found) == [*range(50), *range(1000, 1050)]


def test_appending_while_the_file_is_replaced(tmp_path):
    append(tmp_path, [record()])
    path = log_files(tmp_path)[0]
    descriptor = os.open(path, os.O_RDONLY)
    assert log._is_current(descriptor, path)
    log.replace_lines(path, lambda lines: [one.text for one in lines])
    assert not log._is_current(descriptor, path)
    os.close(descriptor)
    append(tmp_path, [record(2)])
    assert len(read_log(tmp_path).records) == 2


# Packed files -------------------------------------------------------------------------------------------------------


def test_a_packed_log_holds_the_same_and_grows_beside(tmp_path):
    append(tmp_path, [record(), record(2), record()])
    write(tmp_path, "no record")
    before = read_log(tmp_path)
    (packed,) = log.pack(tmp_path)
    assert log_files(tmp_path) == [packed] == [tmp_path / "x86-znver4" / "records.jsonl.gz"]
    after = read_log(tmp_path)
    assert after.records == before.records[:2]  # each once
    assert [problem.rpartition(": ")[2] for problem in after.problems] == [
        problem.rpartition(": ")[2] for problem in before.problems
    ]
    append(tmp_path, [record(3)])
    assert len(read_log(tmp_path, "x86:znver4").records) == 3
    content = packed.read_bytes()
    assert log.pack(tmp_path) == [packed]
    assert len(read_log(tmp_path).records) == 3
    assert content != packed.read_bytes()
    assert log.pack(tmp_path / "none") == []


def test_equal_records_make_equal_packed_files(tmp_path):
    one = record()
    for name in ("a", "b"):
        append(tmp_path / name, [one])
    (first,), (second,) = log.pack(tmp_path / "a"), log.pack(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_a_packed_file_is_pruned_and_merged_like_others(tmp_path):
    append(tmp_path / "a", [record(index) for index in range(4)])
    log.pack(tmp_path / "a")
    assert manage.merge([tmp_path / "a"], tmp_path / "b").added == 4
    assert manage.merge([tmp_path / "a" / "x86-znver4"], tmp_path / "b").known == 4
    assert manage.prune(tmp_path / "a", 1).dropped
    assert log_files(tmp_path / "a")[0].suffix == ".gz"
    assert len(read_log(tmp_path / "a").records) < 4


def test_a_damaged_packed_file_is_named_and_not_packed_again(tmp_path):
    append(tmp_path, [record(index) for index in range(4)])
    (packed,) = log.pack(tmp_path)
    for content in (packed.read_bytes()[:-30], b"no archive"):
        packed.write_bytes(content)
        (problem,) = read_log(tmp_path).problems
        assert "the packed file is damaged from here on" in problem
        with pytest.raises(LogError, match=r"damaged from here on: .*; `tersor log prune` keeps what stands before"):
            log.pack(tmp_path)
        assert packed.read_bytes() == content


def test_a_pack_that_does_not_fit_leaves_the_log(tmp_path, monkeypatch):
    append(tmp_path, [record()])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LogError, match="No space left on device"):
        log.pack(tmp_path)
    assert [path.name for path in (tmp_path / "x86-znver4").iterdir()] == ["records.jsonl"]
    assert len(read_log(tmp_path).records) == 1


def test_the_records_that_ship_are_packed():
    assert {path.name for path in log_files(log.shipped_log_dir())} == {"records.jsonl.gz"}


# What the compiler is told ------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "shipped"
    monkeypatch.setattr(tuned, "shipped_log_dir", lambda: folder)
    return folder


def test_shipped_records_are_used(shipped):
    assert tuned.load_tuned(ZNVER4)(WORKLOAD, OPTIONS) is None
    append(shipped, [*[record(1)] * 3, record(2, target=replace(ZNVER4, cores=1))])
    found = tuned.load_tuned(ZNVER4)
    assert found(WORKLOAD, OPTIONS) == OPTIONS[1]
    records = tuned.read_records(ZNVER4)
    assert records.notes == ()
    known = records.all_known()
    assert known and all(one.is_shipped for one in known)
    other = Workload("conv2d", Conv2dSpec(1, 32, 14, 14, 65))
    assert found(other, Options(other, ZNVER4)) is None


def test_own_measurements_come_on_top(shipped, tmp_path):
    append(shipped, [record(1)] * 3)
    append(tmp_path / "own", [record(1, 3e-3)] * 3)  # slower than the default here
    assert tuned.load_tuned(ZNVER4, tmp_path / "own")(WORKLOAD, OPTIONS) is None
    append(tmp_path / "own", [record(2, 1.5e-3)] * 3)
    assert tuned.load_tuned(ZNVER4, tmp_path / "own")(WORKLOAD, OPTIONS) == OPTIONS[2]


def test_too_few_own_measurements_do_not_undo_what_ships(shipped, tmp_path):
    append(shipped, [record(1)] * 3)
    for _ in range(2):
        append(tmp_path / "own", [record(1, 1.1e-3)])
        found = tuned.load_tuned(ZNVER4, tmp_path / "own")
        assert found(WORKLOAD, OPTIONS) == OPTIONS[1]
        known = tuned.read_records(ZNVER4, tmp_path / "own").all_known()
        assert [one.is_shipped for one in known][:3] == [True] * 3 and not known[3].is_shipped


def test_what_does_not_count_of_the_own_log_is_told(shipped, tmp_path):
    append(shipped, [record(2, target=replace(ZNVER4, cores=1))])
    append(tmp_path / "own", [record(1), record(2, target=replace(ZNVER4, cores=1))])
    path = write(tmp_path / "own", "broken")
    notes = tuned.read_records(ZNVER4, tmp_path / "own").notes
    assert notes[0] == "ignored 1 record: made for 1 thread"
    assert notes[1].startswith(f"{path}:3: ")


def test_the_shipped_folder_is_read_once(shipped):
    append(shipped, [record(1), Record.now(TASK, Outcome(OPTIONS[3], "crash"))])
    assert len(tuned.read_records(ZNVER4, shipped).all_known()) == 2


def test_only_records_of_the_workload_that_is_asked_for_are_looked_at(shipped, monkeypatch):
    """Where caches differ, it takes milliseconds for each, and thousands ship."""
    other = Workload("conv2d", Conv2dSpec(1, 32, 14, 14, 65))
    append(shipped, [*[record(1)] * 3, replace(record(1), task=replace(TASK, workload=other))])
    looked_at = []
    fitting = tuned.fitting

    def watched(records, target):
        looked_at.extend(one.workload for one in records)
        return fitting(records, target)

    monkeypatch.setattr(tuned, "fitting", watched)
    assert tuned.load_tuned(replace(ZNVER4, l3_bytes=1))(WORKLOAD, OPTIONS) == OPTIONS[1]
    assert set(looked_at) == {WORKLOAD}


def test_an_option_that_is_not_offered_is_not_used(shipped):
    spilling = Option("conv2d", replace(OPTIONS[1].knobs, rows=40))
    outcome = replace(record().outcome, option=spilling)
    append(shipped, [replace(record(), outcome=outcome)] * 3)
    found = tuned.load_tuned(ZNVER4)
    assert found.records[WORKLOAD].option == spilling
    assert found(WORKLOAD, OPTIONS) is None


# Managing -----------------------------------------------------------------------------------------------------------


def test_statistics():
    failed = Record.now(TASK, Outcome(OPTIONS[3], "timeout"))
    one_thread = record(target=replace(ZNVER4, cores=1))
    rows = manage.statistics_of([*[record(1)] * 3, failed, one_thread])
    assert [(row.target, row.threads, row.records, row.workloads, row.improved) for row in rows] == [
        ("x86:znver4", 1, 1, 1, 0),
        ("x86:znver4", 2, 4, 1, 1),
    ]
    assert rows[1].statuses == {"ok": 3, "timeout": 1}
    assert rows[1].gain == pytest.approx(2.0)


def test_merging_adds_each_record_once(tmp_path):
    records = [record(index) for index in range(1, 5)]
    append(tmp_path / "a", records[:3])
    append(tmp_path / "b", [*records[2:], record(1, target=resolve_cpu("x86:avx2"))])
    single = write(tmp_path / "c", log.record_line(records[0]), "broken")
    merged = manage.merge([tmp_path / "a", tmp_path / "b", single], tmp_path / "all")
    assert (merged.added, merged.known) == (5, 2)
    assert merged.log.problems[0].startswith(f"{single}:2: ")
    assert len(read_log(tmp_path / "all", "x86:znver4").records) == 4
    assert len(read_log(tmp_path / "all", "x86:avx2").records) == 1
    assert manage.merge([tmp_path / "a"], tmp_path / "all").added == 0
    with pytest.raises(LogError, match="no such file or folder"):
        manage.merge([tmp_path / "none"], tmp_path / "all")
    assert manage.merge([tmp_path / "all" / "x86-znver4"], tmp_path / "one").added == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="empty: holds no records"):
        manage.merge([tmp_path / "empty"], tmp_path / "all")


def test_pruning_keeps_the_fastest_and_the_default(tmp_path):
    slow = [record(index, 1e-3 * index) for index in range(1, 6)]
    default = record(0, 9e-3, 9e-3)
    later = line(schema=2)
    append(tmp_path, [*slow, default])
    write(tmp_path, log.record_line(slow[0]), "broken", later)
    write(tmp_path, log.record_line(Record.now(TASK, Outcome(OPTIONS[8], "crash"))))
    pruned = manage.prune(tmp_path, keep=2)
    assert pruned.kept == 4
    assert pruned.dropped == {"slow": 3, "duplicate": 1, "damaged": 1, "crash": 1}
    content = read_log(tmp_path)
    assert content.records == (slow[0], slow[1], default)
    assert content.ignored.total() == 1
    assert later in log_files(tmp_path)[0].read_text(encoding="utf-8")


def test_pruning_keeps_the_defaults_of_all_targets_and_drops_what_is_stale_first(tmp_path):
    avx2 = resolve_cpu("x86:avx2")
    stale = [replace(one, provenance=replace(one.provenance, tvm="0.26.0")) for one in visits(1, 1e-4, 1e-4, 1e-4)]
    used = [record(2)] * 3
    default = Options(WORKLOAD, avx2).default
    other = Record.now(replace(TASK, target=avx2), Outcome(default, "ok", 9e-3, 0.01, 7, 9e-3))
    append(tmp_path, [*stale, *used, record(3, 1.5e-3), record(0, 2e-3), other])
    manage.prune(tmp_path, keep=1)
    kept = read_log(tmp_path).records
    assert {(one.task.target.name, one.option) for one in kept} == {
        ("x86:znver4", OPTIONS[2]),
        ("x86:znver4", OPTIONS.default),
        ("x86:avx2", default),
    }


def test_what_is_appended_while_pruning_stays(tmp_path, monkeypatch):
    append(tmp_path, [record(1)])

    def late(path, change):
        append(tmp_path, [record(2, 9e-3)])
        log.replace_lines(path, change)

    monkeypatch.setattr(manage, "replace_lines", late)
    manage.prune(tmp_path, keep=1)
    assert {one.option for one in read_log(tmp_path).records} == {OPTIONS[1], OPTIONS[2]}
