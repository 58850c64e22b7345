"""What the operating system refuses or kills while the command line works: one line, and the old output stays."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError
from tersor.cli import tables
from tersor.cli.main import main
from tersor.ir import TensorType, load_ir, ops, save_ir
from tersor.targets import Executable
from tersor.targets.machines import toolchain
from tersor.targets.runtime.array_files import read_arrays, write_outputs
from tersor.tests.ir.test_files import entries, in_child, kill, largest
from tersor.tests.random_graphs import GraphBuilder

RUN = (sys.executable, "-c", "from tersor.cli.main import main; main()")


@pytest.fixture(scope="module")
def executable() -> Executable:
    torch.manual_seed(0)
    return tersor.compile(nn.Linear(64, 64), (torch.randn(1, 64),), pipeline="O1")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)


# Standard output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["passes"], ["passes", "--json"], ["targets", "--json"], ["--help"]])
def test_a_full_device_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(*arguments) == 2
    assert (
        capsys.readouterr().err == "tersor: the output: No space left on device; make room, or choose another place\n"
    )


@pytest.mark.parametrize("arguments", [["passes"], ["passes", "--json"]])
def test_a_closed_pipe_ends_quietly(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(*arguments) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("x")])
def test_errors_of_our_own_are_tracebacks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: Any) -> None:
        raise error

    monkeypatch.setattr("tersor.cli.main.print_json", fail)
    with pytest.raises(type(error)):
        main(["passes", "--json"])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EFBIG, errno.EROFS])
def test_refusals_are_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(value: Any) -> None:
        raise OSError(number, os.strerror(number), "somewhere/file")

    monkeypatch.setattr("tersor.cli.main.print_json", fail)
    assert run("passes", "--json") == 2
    assert capsys.readouterr().err.startswith(f"tersor: somewhere/file: {os.strerror(number)}; ")


def test_a_pipe_is_told_at_once_what_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with tables.progress() as shown:
        shown.begin("load")
        assert capsys.readouterr().err == "load …\n"
        shown.show("compile original")
        assert capsys.readouterr().err == "compile original …\n"


# Temporary files and compilers ------------------------------------------------------------------------------------


def compile_something() -> Executable:
    b = GraphBuilder({"x": TensorType((8,))})
    return tersor.compile(b.done(b.op(ops.ReluOp, b.graph.inputs[0])), pipeline="O1")


def test_a_limit_on_files_is_one_line() -> None:
    with pytest.raises(TersorError, match=r"files are limited to 4 KiB \(ulimit -f\), linking needs"), largest(4096):
        compile_something()


def test_full_temporary_files_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    message = "no temporary files can be written: No space left on device, linking needs .*; make room, or set TMPDIR"
    with pytest.raises(TersorError, match=message):
        compile_something()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/no/such/gcc -O2", "CC names /no/such/gcc, which is no program here; correct or unset it"),
        ("false", "false failed to link: status 1"),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line(command: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CC", command)
    with pytest.raises(TersorError, match=message):
        compile_something()


def test_a_named_compiler_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{shutil.which('g++') or shutil.which('cc')} -O1")
    assert compile_something()(torch.ones(8)).sum() == 8


# Outputs ----------------------------------------------------------------------------------------------------------


def test_run_leaves_the_old_output_on_a_full_disk(
    executable: Executable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executable.save(tmp_path / "m.tersor")
    np.save(tmp_path / "x.npy", np.ones((1, 64), np.float32))
    for suffix in ("npy", "npz", "safetensors"):
        path = tmp_path / f"y.{suffix}"
        path.write_bytes(b"old")
        outputs = [torch.zeros(50_000)]
        with pytest.raises(TersorError, match=rf"cannot write .*y\.{suffix}: .*choose another"), largest(1000):
            write_outputs(path, outputs, executable.info.outputs)
        assert path.read_bytes() == b"old"
    assert run("run", tmp_path / "m.tersor", "--input", tmp_path / "x.npy", "--output", tmp_path / "no" / "y.npy") == 2
    assert "is not an existing directory; create it first" in capsys.readouterr().err
    assert entries(tmp_path) == ["m.tersor", "x.npy", "y.npy", "y.npz", "y.safetensors"]


def test_an_artifact_on_a_full_disk_is_one_line(executable: Executable, tmp_path: Path) -> None:
    path = executable.save(tmp_path / "m.tersor")
    whole = path.read_bytes()
    for size in (1000, 20_000, len(whole) - 100):
        with (
            pytest.raises(TersorError, match=r"cannot write .*m\.tersor: .*File too large.*choose another"),
            largest(size),
        ):
            executable.save(path)
    assert path.read_bytes() == whole
    assert entries(tmp_path) == ["m.tersor"]


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_writers_leave_whole_files(kills: int, executable: Executable, tmp_path: Path) -> None:
    artifact, arrays = tmp_path / "m.tersor", tmp_path / "y.npy"

    def write() -> None:
        executable.save(artifact)
        write_outputs(arrays, [torch.zeros(10_000)], executable.info.outputs)

    def write_for_ever() -> None:
        while True:
            write()

    write()
    for index in range(kills):
        child = in_child(write_for_ever)
        time.sleep(0.05 + 0.001 * (index * 7 % 23))
        kill(child)
        tersor.load(artifact)
        read_arrays(arrays)
    write()
    assert entries(tmp_path) == ["m.tersor", "y.npy"]


@pytest.mark.slow
def test_killed_commands_leave_loadable_pairs(tmp_path: Path) -> None:
    """The whole way: `tersor opt -o` over its own output, killed at any time."""
    b = GraphBuilder({"x": TensorType((1, 64, 8, 8))})
    save_ir(b.done(b.op(ops.ReluOp, b.batch_norm(b.conv(b.graph.inputs[0], 512)))), tmp_path / "m.ir")
    out, pipelines = tmp_path / "out.ir", ("canonicalize", "fold-batchnorm")
    command = [*RUN, "opt", str(tmp_path / "m.ir"), "-o", str(out), "-p"]
    took = timed(lambda: subprocess.run([*command, pipelines[0]], check=True, capture_output=True))
    generator = random.Random(0)
    for index in range(30):
        process = subprocess.Popen([*command, pipelines[index % 2]], stderr=subprocess.DEVNULL)
        time.sleep(took * generator.uniform(0.6, 1.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        load_ir(out)
    subprocess.run([*command, pipelines[0]], check=True, capture_output=True)
    assert entries(tmp_path) == ["m.ir", "m.safetensors", "out.ir", "out.safetensors"]


@pytest.mark.slow
def test_killed_bundles_are_whole_or_not_there(executable: Executable, tmp_path: Path) -> None:
    path, generator = tmp_path / "bundle", random.Random(0)
    took = timed(lambda: executable.save_bundle(path))
    for _ in range(10):
        child = in_child(lambda: executable.save_bundle(path))
        time.sleep(took * generator.uniform(0.1, 1.0))
        kill(child)
        check = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=path, check=False)
        assert check.returncode == 0
    executable.save_bundle(path)
    assert entries(tmp_path) == ["bundle"]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
