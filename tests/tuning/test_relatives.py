"""Records of a target with the same float32 kernels are used where there are none of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import relative_of, resolve_cpu
from tersor.targets.machines.families import FAMILIES
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.conv2d.spec import Conv2dSpec
from tersor.targets.templates.option import Option, Workload
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.log import append
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.task import Task
from tersor.targets.tuning.tuned import load_tuned, read_records, tuned_by

ALDER_LAKE, AVX2 = resolve_cpu("x86:alderlake"), resolve_cpu("x86:avx2")
SPEC = Conv2dSpec(1, 32, 14, 14, 64)
FLOATS, BYTES = (Workload("conv2d", replace(SPEC, dtype=dtype)) for dtype in ("float32", "uint8"))


def log_that(folder: Path, workload: Workload, target: Cpu, option: Option, *, ratio: float = 0.5) -> Path:
    """A log of measurements that say how long an option takes, beside the default."""
    task = Task(workload, "graph @conv() {\n  return\n}\n", target, weight=1, macs=1, bytes=1, location="conv")
    append(folder, [Record.now(task, Outcome(option, "ok", ratio * 1e-3, 0.01, 9, 1e-3))] * 3)
    return folder


def last_option(workload: Workload) -> Option:
    return Options(workload, AVX2)[-1]


def chosen(workload: Workload, target: Cpu, log_dir: Path) -> Option | None:
    return load_tuned(target, log_dir, shipped=False)(workload, Options(workload, target))


def test_a_relative_has_records_for_float32(tmp_path: Path):
    log_dir = log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    assert chosen(FLOATS, AVX2, log_dir) == chosen(FLOATS, ALDER_LAKE, log_dir) == last_option(FLOATS)
    assert read_records(ALDER_LAKE, log_dir, shipped=False).all_known() == ()  # tuning does not learn from them
    assert chosen(FLOATS, resolve_cpu("x86:znver4"), log_dir) is None


def test_kernels_of_bytes_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even where options and default are called the same."""
    relative = relative_of(ALDER_LAKE)
    assert relative is not None
    here, there = Options(BYTES, ALDER_LAKE), Options(BYTES, relative)
    default, option = [one for one in there if one in here][:2]
    monkeypatch.setattr(Options, "default", default)
    log_dir = log_that(tmp_path, BYTES, relative, option)
    assert chosen(BYTES, relative, log_dir) == option
    assert chosen(BYTES, ALDER_LAKE, log_dir) is None


def test_a_measurement_of_its_own_decides(tmp_path: Path):
    log_dir = log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    log_that(log_dir, FLOATS, ALDER_LAKE, last_option(FLOATS), ratio=1.5)
    assert chosen(FLOATS, ALDER_LAKE, log_dir) is None
    assert chosen(FLOATS, AVX2, log_dir) == last_option(FLOATS)


def test_they_decide_after_tuning_too(tmp_path: Path):
    log_dir = log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    options = Options(FLOATS, ALDER_LAKE)
    assert tuned_by((), ALDER_LAKE, log_dir)(FLOATS, options) == last_option(FLOATS)
    log_that(log_dir, FLOATS, ALDER_LAKE, last_option(FLOATS), ratio=1.5)
    measured = read_records(ALDER_LAKE, log_dir, shipped=False).all_known()
    assert tuned_by(measured, ALDER_LAKE, log_dir)(FLOATS, options) is None


def test_threads_must_agree(tmp_path: Path):
    log_dir = log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    assert chosen(FLOATS, replace(ALDER_LAKE, cores=8), log_dir) is None


def test_an_option_that_the_target_lacks_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log_dir = log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    members = Options.__contains__

    def lacking(options: Options, option: object) -> bool:
        return options.target.name != ALDER_LAKE.name and members(options, option)

    assert chosen(FLOATS, ALDER_LAKE, log_dir) is not None
    monkeypatch.setattr(Options, "__contains__", lacking)
    relative = load_tuned(ALDER_LAKE, log_dir, shipped=False)._relative
    assert relative is not None and relative.best(FLOATS) is None


def test_a_program_uses_them(tmp_path: Path):
    module, x = nn.Conv2d(32, 64, 3, padding=1), torch.randn(1, 32, 14, 14)
    graph = tersor.run_passes(tersor.from_torch(module, x), "O3,layout", target=AVX2)
    (task,) = (one for one in extract_tasks(graph, AVX2) if one.workload.kind == "conv2d")
    log_dir = log_that(tmp_path, task.workload, AVX2, last_option(task.workload))
    executable = tersor.compile(module, x, target=ALDER_LAKE, log_dir=log_dir, check=False)
    assert [one.knobs for one in executable.info.kernels if one.tuned] == [str(last_option(task.workload).knobs)]


def test_what_decides_is_part_of_the_digest(tmp_path: Path):
    nothing = load_tuned(ALDER_LAKE, tmp_path, shipped=False).digest
    log_that(tmp_path, FLOATS, AVX2, last_option(FLOATS))
    assert load_tuned(ALDER_LAKE, tmp_path, shipped=False).digest != nothing


def test_relatives_are_targets_with_fewer_instructions():
    for family in FAMILIES.values():
        for name, other in family.relatives.items():
            target, relative = resolve_cpu(name), resolve_cpu(other)
            found = relative_of(target)
            assert found is not None and found.name == other
            assert set(relative.features) < set(target.features)
            for field in ("vector_bytes", "vector_registers", "multiply_adds", "channel_blocks"):
                assert getattr(relative, field) == getattr(target, field)
    assert relative_of(AVX2) is None
