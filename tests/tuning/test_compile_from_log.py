"""Compiling from a log: recorded options are used, reported, and right; without records nothing changes."""

from __future__ import annotations

import pytest
import torch

import tersor
from tersor.cli.main import main
from tersor.ir import Graph, TensorType, ops
from tersor.passes import run_passes
from tersor.targets import resolve_target
from tersor.targets.codegen.options import Options
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.log import append, log_files
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record
from tersor.tests.random_graphs import GraphBuilder

NATIVE = resolve_target("x86:native")


@pytest.fixture(scope="module")
def graph() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 32, 12, 12))})
    y = b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 48, location="a"))
    y = b.op(ops.ReluOp, b.conv(y, 32, kernel=1, location="b"))
    return b.done(b.linear(b.op(ops.MeanOp, y, axes=(2, 3)), 10))


@pytest.fixture
def log_dir(graph, tmp_path):
    """Records that say that the last option of each convolution is twice as fast as the default."""
    optimized = run_passes(graph, "O3,fold-batchnorm,layout", target=NATIVE)
    for task in extract_tasks(optimized, NATIVE):
        if task.workload.kind == "conv2d":
            option = Options(task.workload, task.target)[-1]
            append(tmp_path / "logs", [Record.now(task, Outcome(option, "ok", 1e-4, 0.01, 9, 2e-4))] * 3)
    return tmp_path / "logs"


def test_recorded_options_are_used_and_right(graph, log_dir):
    plain, chosen = tersor.compile(graph), tersor.compile(graph, log_dir=log_dir)
    x = torch.randn(1, 32, 12, 12, generator=torch.Generator().manual_seed(0))
    (expected,) = graph.evaluate(x)
    assert not any(kernel.tuned for kernel in plain.info.kernels)
    convolutions = [kernel for kernel in chosen.info.kernels if "conv2d" in kernel.op]
    assert len(convolutions) == 2
    assert all(kernel.tuned for kernel in convolutions)
    assert [kernel.knobs for kernel in convolutions] != [k.knobs for k in plain.info.kernels if "conv2d" in k.op]
    for executable in (plain, chosen):
        torch.testing.assert_close(executable(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_saved_model_says_which_kernels_were_tuned(graph, log_dir, tmp_path):
    executable = tersor.compile(graph, log_dir=log_dir)
    executable.save(tmp_path / "model.tersor")
    loaded = tersor.load(tmp_path / "model.tersor")
    assert [kernel.tuned for kernel in loaded.info.kernels] == [kernel.tuned for kernel in executable.info.kernels]


def test_damaged_lines_are_named_and_compiling_goes_on(graph, log_dir):
    path = log_files(log_dir)[0]
    with path.open("a", encoding="utf-8") as file:
        file.write("broken\n")
    with pytest.warns(tersor.ir.TersorWarning, match=r"records\.jsonl:7: Expecting value"):
        executable = tersor.compile(graph, log_dir=log_dir)
    assert any(kernel.tuned for kernel in executable.info.kernels)


def test_the_command_line_tells_how_many(graph, log_dir, tmp_path, capsys):
    tersor.ir.save_ir(graph, tmp_path / "model.ir")
    arguments = ["compile", tmp_path / "model.ir", "--log-dir", log_dir, "-o", tmp_path / "model.tersor"]
    with pytest.raises(SystemExit, match="0"):
        main([str(argument) for argument in arguments])
    assert "2 of them chosen by tuning records" in capsys.readouterr().out
