"""MetaSchedule with our builder and runner: it searches what has no template, and the compiler uses what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tersor.ir import ops
from tersor.targets import compile_graph
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.runtime.virtual_machine import to_tvm
from tersor.targets.templates import loops
from tersor.targets.tuning import scheduled
from tersor.targets.tuning.candidate import compile_function, load_function
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.measure import LocalMeasurer
from tersor.targets.tuning.metaschedule import best_trace, database_folder, is_searchable, load_intrinsics, tune_task
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.timing import TimingPolicy
from tersor.targets.tuning.tuned import Tuned
from tersor.tests.targets.compiled import NATIVE, assert_same, builder, prepared

TARGET = resolve_cpu(NATIVE)
SPEC = loops.AdaptivePoolSpec(1, 16, 7, 9, 3, 4, 16)


def test_intrinsics_of_gpus_are_not_imported() -> None:
    load_intrinsics("x86")
    import tvm.s_tir.tensor_intrin

    assert "tvm.s_tir.tensor_intrin.x86" in sys.modules
    assert "tvm.s_tir.tensor_intrin.cuda" not in sys.modules
    assert tvm.s_tir.tensor_intrin.__path__


def test_schedules_are_checked_and_timed() -> None:
    function = loops.definition(SPEC)
    reference = compile_function(function, TARGET, pipeline=None)
    types = scheduled.argument_types(function)
    assert types == [((SPEC.in_size,), "float32"), ((16 * 12,), "float32")]
    scheduled.prepare(reference, types, TARGET.cores)
    policy = TimingPolicy(max_seconds=0.02)
    right = scheduled.run(compile_function(loops.build(SPEC, TARGET, loops.LoopKnobs()), TARGET), policy)
    assert right.status == "ok" and right.seconds > 0
    other = loops.AdaptivePoolSpec(1, 16, 9, 7, 3, 4, 16)  # other windows over a buffer of the same size
    wrong = scheduled.run(compile_function(loops.build(other, TARGET, loops.LoopKnobs()), TARGET), policy)
    assert wrong.status == "wrong" and "differs by" in wrong.detail


@pytest.mark.slow
def test_a_search_finds_a_schedule_that_the_compiler_uses(tmp_path: Path) -> None:
    b = builder(x=(1, 64, 30, 30))
    pooled = b.op(ops.AdaptiveAvgPool2dOp, b.graph.inputs[0], size=(7, 9))
    graph = prepared(b.done(b.op(ops.ReluOp, pooled)), "fuse,layout")
    (task,) = [one for one in extract_tasks(graph, TARGET) if is_searchable(one)]
    records: list[Record] = []
    with LocalMeasurer() as measurer:
        tune_task(task, measurer, tmp_path, records.append, trials=4)
    assert len(records) == 6 and all(record.outcome.ok for record in records)
    assert sorted(path.name for path in database_folder(TARGET, tmp_path).iterdir()) == [
        "database_tuning_record.json",
        "database_workload.json",
    ]
    assert best_trace(loops.definition(task.workload.spec), TARGET, tmp_path)
    found = next(record for record in records if record.option.knobs.trace)  # whether it is faster is not asked here
    executable = compile_graph(graph, TARGET, choose=Tuned({task.workload: found}))
    assert any("LoopKnobs(trace " in kernel.knobs for kernel in executable.info.kernels)
    x = torch.randn(1, 64, 30, 30, generator=torch.Generator().manual_seed(0))
    assert_same(executable(x), graph.evaluate(x)[0], "output")


def test_the_fixed_rule_computes_averages() -> None:
    function = load_function(compile_function(loops.build(SPEC, TARGET, loops.LoopKnobs()), TARGET))
    x = torch.randn(1, 16, 7, 9, generator=torch.Generator().manual_seed(0))
    y = torch.empty(12 * 16)
    function(to_tvm(x.permute(0, 2, 3, 1).contiguous().view(-1)), to_tvm(y))
    expected = torch.nn.functional.adaptive_avg_pool2d(x, (3, 4))
    assert torch.allclose(y.view(1, 3, 4, 16).permute(0, 3, 1, 2), expected, atol=1e-6)
