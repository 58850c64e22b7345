"""Bundles: what `tersor compile --bundle` writes runs by itself, on an emulated board and on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.ir import TersorError
from tersor.targets import Executable, resolve_target
from tersor.targets.machines.catalog import host_machine
from tersor.targets.packaging import bundle_runtime
from tersor.targets.packaging.bundle import check_bundle_output, save_bundle, write_model

from . import emulated
from .compiled import assert_same
from .emulated import TIMEOUT, emulate, require_emulator, run_bundle
from .test_models import load

A72, A76 = "arm:cortex-a72", "arm:cortex-a76"
TOLERANCE = 1e-4


# Whole networks on an emulated board --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "pipeline"),
    [
        ("efficientnet_lite0", A72, "O3"),
        ("efficientnet_lite0", A72, "O3,quantize"),
        ("efficientnet_lite0", A76, "O3,quantize"),
        ("resnet18", A76, "O3"),
    ],
)
def test_network(name: str, target: str, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require_emulator()
    module, inputs = load(name, monkeypatch)
    calibration = [inputs] if "quantize" in pipeline else None
    executable = tersor.compile(module, inputs, target=target, pipeline=pipeline, calibration=calibration)
    bundle = executable.save_bundle(tmp_path / "bundle")
    (actual,) = run_bundle(bundle, inputs, target.removeprefix("arm:"))
    (expected,) = executable.graph.evaluate(*inputs)
    if calibration:
        assert any(kernel.template == "conv2d_int8" for kernel in executable.info.kernels)
        assert torch.equal(actual, expected)
    else:
        assert_same(actual, expected, name, TOLERANCE)
        with torch.inference_mode():
            assert_same(actual, module(*inputs), name, TOLERANCE)


class Lookup(nn.Module):
    """Row numbers and a mask; numbers and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.table(rows)
        return torch.where(mask, found, found * 2.0), found > 0.5


# A bundle of this machine: the same runner, without an emulator -------------------------------------------------------


@pytest.fixture(scope="module")
def executable() -> Executable:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    return tersor.compile(module, (torch.randn(2, 3, 8, 8),))


@pytest.fixture(scope="module")
def bundle(executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; tests must not change it."""
    return executable.save_bundle(tmp_path_factory.mktemp("bundle") / "model")


def start(bundle: Path, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return emulated.start([bundle / "run", *map(str, arguments)], folder)


def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_it_computes_what_the_model_does(executable: Executable, bundle: Path, tmp_path: Path):
    x = executable.random_inputs()[0]
    np.save(tmp_path / "x.npy", x.numpy())
    result = start(bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--bench", 3, "--threads", 2)
    assert (result.returncode, result.stderr) == (0, "")
    written, timed = result.stdout.splitlines()
    assert written == f"output0: float32[2,5] written to {tmp_path / 'y.npy'}"
    assert "ms median (min " in timed and timed.endswith("3 runs, 2 threads)")
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "y.npy")), executable(x))


def test_it_works_from_anywhere_on_random_numbers(bundle: Path, tmp_path: Path):
    moved = copied(bundle, tmp_path)
    result = start(moved, folder=Path("/"))
    assert (result.returncode, result.stdout) == (0, "output0: float32[2,5]\n")


def test_types_and_row_numbers(tmp_path: Path, bundle: Path):
    torch.manual_seed(0)
    inputs = (torch.tensor([[1, 9, 0]]), torch.tensor([[[True], [False], [True]]]))
    executable = tersor.compile(Lookup().eval(), inputs)
    write_model(executable.model, tmp_path)
    for index, tensor in enumerate(inputs):
        np.save(tmp_path / f"{index}.npy", tensor.numpy())
    arguments = ["--bundle", tmp_path, "--output", tmp_path / "y.npy", "--output", tmp_path / "z.npy"]
    given = ["--input", tmp_path / "0.npy", "--input", tmp_path / "1.npy"]
    result = start(bundle, *arguments, *given)
    assert result.returncode == 0, result.stderr
    for name, wanted in zip("yz", executable(*inputs), strict=True):
        got = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    np.save(tmp_path / "0.npy", np.array([[1, 10, 0]]))
    wrong = start(bundle, *arguments, *given)
    assert (wrong.returncode, wrong.stderr) == (2, "run: input rows must hold row numbers from 0 to 9, not 10\n")


def test_contents(executable: Executable, bundle: Path):
    assert {path.name for path in bundle.iterdir()} == {
        *("run", "runner", "lib", "model.so", "constants.bin", "manifest.txt", "source", "README.md", "SHA256SUMS")
    }
    sums: dict[str, str] = dict(line.split("  ")[::-1] for line in (bundle / "SHA256SUMS").read_text().splitlines())
    for path in bundle.rglob("*"):
        name = str(path.relative_to(bundle))
        if path.is_file() and name != "SHA256SUMS":
            assert sums.pop(name) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not sums
    readme = (bundle / "README.md").read_text()
    assert "./run --input input.npy --output output0.npy" in readme
    assert "- input `input`: float32 [2, 3, 8, 8]" in readme
    assert executable.info.target.name in readme and "$model" not in readme


def test_runner_builds_from_its_source_without_warnings(bundle: Path, tmp_path: Path):
    copy = copied(bundle, tmp_path)
    (copy / "runner").unlink()
    command = next(line for line in (bundle / "README.md").read_text().split("\n\n") if line.startswith("    g++"))
    strict = command.replace("g++", "g++ -Wall -Wextra -Werror")
    subprocess.run(["sh", "-ec", strict], cwd=copy, check=True, timeout=TIMEOUT)
    assert start(copy).returncode == 0


def test_archive_holds_the_same(executable: Executable, bundle: Path, tmp_path: Path):
    packed = executable.save_bundle(tmp_path / "model.tar.gz")
    with tarfile.open(packed) as archive:
        checks = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        cast(Any, archive).extractall(tmp_path, **checks)
    assert (tmp_path / "model" / "SHA256SUMS").read_text() == (bundle / "SHA256SUMS").read_text()
    assert start(tmp_path / "model").returncode == 0


def test_a_bundle_replaces_a_bundle_only(executable: Executable, bundle: Path, tmp_path: Path):
    old = copied(bundle, tmp_path)
    (old / "leftover").touch()
    executable.save_bundle(old)
    assert not (old / "leftover").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(TersorError, match="mine is a directory with other files in it"):
        executable.save_bundle(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "mine"]


# What a user may do wrong on the board --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bend 3", "unknown option --bend; see --help"),
        ("--bench", "--bench needs a value"),
        ("--bench 0", "--bench must be a whole number between 1 and 1000000, not 0"),
        ("--threads two", "--threads must be a whole number between 1 and 1024, not two"),
        ("--input none.npy", "none.npy: not readable"),
        ("--input text.npy", "text.npy: not a .npy file; write it with numpy.save"),
        ("--input double.npy", "input input must be float32[2,3,8,8], this is of type <f8"),
        ("--input small.npy", "input input must be float32[2,3,8,8], this is <f4[2,3,8]"),
        ("--input fortran.npy", "in Fortran's order"),
        ("--input cut.npy", "cut.npy: truncated"),
        ("--input x.npy --input x.npy", "takes 1 inputs (input:float32[2,3,8,8]), got 2"),
        ("--output a.npy --output b.npy", "has 1 outputs, not 2"),
        ("--output nowhere/y.npy", "nowhere/y.npy: cannot be written"),
        ("--bundle nowhere", "nowhere/manifest.txt: not readable; copy the whole folder"),
    ],
)
def test_wrong_arguments(arguments: str, message: str, bundle: Path, tmp_path: Path):
    x = np.zeros((2, 3, 8, 8), np.float32)
    for name, array in {"x": x, "double": x.astype(float), "small": x[..., 0], "fortran": np.asfortranarray(x)}.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    (tmp_path / "text.npy").write_text("1 2 3")
    result = start(bundle, *arguments.split(), folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("run: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


def test_damage_is_found(bundle: Path, tmp_path: Path):
    copy = copied(bundle, tmp_path)
    constants = copy / "constants.bin"
    whole = constants.stat().st_size
    constants.write_bytes(constants.read_bytes()[:-100])
    assert f"constants.bin: {whole - 100} bytes instead of {whole}; copy it again" in start(copy).stderr
    constants.unlink()
    assert "constants.bin: missing; copy the whole folder" in start(copy).stderr
    (copy / "manifest.txt").write_text("tersor-bundle 2\n")
    assert "not the manifest of a bundle that this runner knows" in start(copy).stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("output float32 2x5", "output float32 2x500000", "output output0 has another size in the code"),
        ("output float32 2x5", "output float64 2x5", "output output0 has another size in the code"),
        ("input float32 2x3x8x8", "input float32 2x3x8x9", ""),
        ("input float32 2x3x8x8", f"input float32 2x{2**40}", "out of memory"),
        ("input float32 2x3x8x8", f"input float32 {2**40}x{2**40}", "is too large"),
        ("constant float32 0 ", "constant int32 0 ", ""),
    ],
)
def test_a_manifest_of_another_model_is_found(old: str, new: str, message: str, bundle: Path, tmp_path: Path):
    copy = copied(bundle, tmp_path)
    text = (copy / "manifest.txt").read_text()
    assert old in text
    (copy / "manifest.txt").write_text(text.replace(old, new))
    result = start(copy, "--output", tmp_path / "y.npy")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (tmp_path / "y.npy").exists()


def test_wrong_machine(bundle: Path, tmp_path: Path):
    copy = copied(bundle, tmp_path)
    manifest = copy / "manifest.txt"
    text = manifest.read_text()
    manifest.write_text(text + "feature zz_vectors\n")
    assert "this processor lacks zz_vectors; compile the model for an older one" in start(copy).stderr
    manifest.write_text(text.replace(f"machine {host_machine()}", "machine aarch64"))
    assert f"this bundle is for aarch64 ({text.split()[5]}), this machine is {host_machine()};" in start(copy).stderr


def test_wrong_architecture_and_wrong_processor(tmp_path: Path):
    require_emulator()
    x = torch.randn(2, 8)
    bundle = tersor.compile(nn.Linear(8, 4), (x,), target=A76).save_bundle(tmp_path / "bundle")
    here = start(bundle)
    assert here.returncode == 2
    assert here.stderr.startswith("run: this bundle is for aarch64 (arm:cortex-a76), this machine is x86_64; compile")
    older = emulate(bundle / "runner", processor="cortex-a72")
    assert older.returncode == 2
    assert older.stderr.startswith("run: this bundle is for arm:cortex-a76, this processor lacks asimddp")
    assert older.stderr.count("\n") == 1
    assert emulate(bundle / "runner", processor="cortex-a76").returncode == 0


# What a user may do wrong when it is written --------------------------------------------------------------------------


def test_output_is_checked_first(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(TersorError, match="file is in the way; remove it"):
        check_bundle_output(tmp_path / "file")
    with pytest.raises(TersorError, match="nowhere is not an existing directory"):
        check_bundle_output(tmp_path / "nowhere" / "bundle")


def test_gpus_have_no_bundles(tmp_path: Path):
    model: Any = SimpleNamespace(info=SimpleNamespace(target=resolve_target("cuda:sm_80")))
    with pytest.raises(TersorError, match="bundles run on processors only, not on cuda:sm_80"):
        save_bundle(model, tmp_path / "bundle")


def test_given_runtime_is_checked(executable: Executable, bundle: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TersorError, match=r"empty: no libtvm_runtime\.so in it; take it from the wheels of apache-tvm"):
        executable.save_bundle(tmp_path / "bundle", runtime=tmp_path / "empty")
    with pytest.raises(TersorError, match=r"libtvm_runtime\.so: not a library for aarch64"):
        bundle_runtime.runtime_libraries("aarch64", bundle / "lib")
    assert bundle_runtime.runtime_libraries(host_machine(), bundle / "lib") == bundle / "lib"
    assert not (tmp_path / "bundle").exists()


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(TersorError, match=r"cannot download apache-tvm==.* for aarch64 \(.*connect .* --runtime"):
        bundle_runtime.runtime_libraries("aarch64", None)
    assert not list((tmp_path / "tersor").iterdir())


# The command line -----------------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tersor.cli.main import main

    require_emulator()
    torch.manual_seed(0)
    module, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "model.pt2")
    words = ["compile", str(tmp_path / "model.pt2"), "--target", A72, "--bundle", str(tmp_path / "bundle"), "--json"]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    written = json.loads(capsys.readouterr().out)
    assert (written["output"], written["bundle"]) == (None, str(tmp_path / "bundle"))
    (actual,) = run_bundle(tmp_path / "bundle", (x,), "cortex-a72")
    assert_same(actual, module(x).detach(), "output", TOLERANCE)
    for more, message in (
        ([], "nothing to write: give --output"),
        (["-o", "m.tersor", "--runtime", "lib"], "--bundle DIR"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*words[:4], *more])
        assert message in capsys.readouterr().err
