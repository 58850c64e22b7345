"""The command line: every command does its work, and every user's mistake is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tersor.cli.main import main
from tersor.frontend import load_model
from tersor.ir import TersorWarning, save_ir
from tersor.targets.codegen.kernel_cache import KernelCache

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)
    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

class Unsupported(nn.Module):
    def forward(self, x):
        return torch.geqrf(x).a + torch.matrix_exp(x)

def make():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(1, 3, 8, 8),)

def unsupported():
    return Unsupported(), (torch.eye(4),)

def batches():
    yield torch.randn(4, 3, 8, 8)
"""
MODEL = "tersor_cli_model:make"


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in every form that the command line takes, and an input for it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tersor_cli_model.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = load_model(MODEL)
        with pytest.raises(SystemExit, match="0"):
            main(["compile", MODEL, "-o", "model.tersor"])
    model, inputs = cast(nn.Module, loaded.model), cast(tuple[torch.Tensor], loaded.example_inputs)
    torch.export.save(torch.export.export(model, inputs), folder / "model.pt2")
    twice, batch = torch.cat([*inputs, *inputs]), torch.export.Dim("batch")
    program = torch.export.export(model, (twice,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "dynamic.pt2")
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(model, inputs, folder / "net.onnx", dynamo=False, opset_version=17, **names)
    save_ir(loaded.to_graph(), folder / "model.ir")
    torch.save(model.state_dict(), folder / "weights.pt")
    np.save(folder / "x.npy", inputs[0].numpy())
    with torch.inference_mode():
        np.save(folder / "expected.npy", model(*inputs).numpy())
    return folder


@pytest.fixture
def tersor(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in the folder of models."""
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(int(exit.value.code or 0), printed.out, printed.err)

    return run


def assert_expected(actual: np.ndarray | torch.Tensor, folder: Path) -> None:
    expected = np.load(folder / "expected.npy")
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "compile", "run", "bench", "targets", "opt", "passes"])
def test_help_has_examples(command: str, tersor: Callable[..., Result]) -> None:
    result = tersor(*command.split(), "--help")
    assert result.code == 0
    assert f"tersor {command}" in result.out.split("Examples:")[-1]


@pytest.mark.parametrize("model", [MODEL, "model.pt2", "model.ir", "model.tersor"])
def test_compile_and_run_every_kind_of_model(
    model: str, tersor: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.tersor"
    result = tersor("compile", model, "-o", output)
    assert result.code == 0
    assert str(output.name) in result.out.replace("\n", "")
    assert "generate code" in result.err
    assert tersor("run", output, "--input", "x.npy", "--output", tmp_path / "y.npy").code == 0
    assert_expected(np.load(tmp_path / "y.npy"), folder)


def test_an_onnx_file(tersor: Callable[..., Result], folder: Path, tmp_path: Path) -> None:
    output, shape = tmp_path / "out.tersor", ("--shape", "x=1,3,8,8")
    assert tersor("compile", "net.onnx", *shape, "-o", output).code == 0
    assert tersor("run", output, "--input", "x.npy", "--output", tmp_path / "y.npy").code == 0
    assert_expected(np.load(tmp_path / "y.npy"), folder)
    text = tersor("opt", "net.onnx", *shape, "-p", "canonicalize").out
    assert "(%x: f32[1,3,8,8])" in text
    assert 'takes ("x": *) {} gives {"y": *}' in text


@pytest.mark.parametrize("model", [MODEL, "dynamic.pt2"])
def test_dynamic_shapes(model: str, tersor: Callable[..., Result], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.tersor"
    result = tersor("compile", model, "--dynamic", "x=batch,3,8,8", "--at", "batch=1", "--at", "batch=2", "-o", output)
    assert result.code == 0
    assert "x: f32[batch,3,8,8]" in result.out
    assert "generate code (batch=2)" in result.err
    assert tersor("run", output, "--input", "x.npy", "--output", tmp_path / "y.npy").code == 0
    assert_expected(np.load(tmp_path / "y.npy"), folder)
    np.save(tmp_path / "three.npy", np.repeat(np.load(folder / "x.npy"), 3, axis=0))
    shown = tersor("run", output, "--input", tmp_path / "three.npy")
    assert "[3,4]" in shown.out.replace(" ", "")
    assert tersor("bench", output, "--repeat", "1", "--json").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL, "--dynamic", "x=batch,3,8,9"), "the input is f32[batch,3,8,8] in the example"),
        ((MODEL, "--dynamic", "y=batch,3"), "names 'y'; the inputs are x"),
        ((MODEL, "--dynamic", "x=batch;3"), "must be NAME=EXTENT"),
        ((MODEL, "--dynamic", "x=batch,3,8,8", "--at", "n=2"), "no extent is called 'n'"),
        ((MODEL, "--dynamic", "x=batch,3,8,8", "--at", "batch"), "must be NAME=NUMBER"),
        ((MODEL, "--at", "batch=2"), "has none; say what varies by --dynamic"),
        (("model.ir", "--dynamic", "x=batch,3,8,8"), "has the shapes that it was saved with"),
        (
            ("model.pt2", "--dynamic", "x=batch,3,8,8"),
            "dimension 0 of an input of shape [1, 3, 8, 8] 'batch', but only",
        ),
        (("dynamic.pt2", "--dynamic", "x=batch,3,8,9"), "the input is f32[batch,3,8,8] in the example or the file"),
        (("dynamic.pt2", "--dynamic", "x=2*batch,3,8,8"), "the input is f32[s77,3,8,8] in the example or the file"),
        (("dynamic.pt2", "--at", "batch=2"), "no extent is called 'batch'; the model's are: s77"),
    ],
)
def test_wrong_dynamic_shapes(
    arguments: tuple[str, ...], message: str, tersor: Callable[..., Result], tmp_path: Path
) -> None:
    result = tersor("compile", *arguments, "-o", tmp_path / "out.tersor")
    assert result.code == 2
    assert message in " ".join(result.err.split())


def test_compile_for_another_target_and_thread_count(tersor: Callable[..., Result], tmp_path: Path) -> None:
    result = tersor(
        "compile", "model.ir", "-o", tmp_path / "m.tersor", "--target", "x86:avx2", "-p", "O1", "--threads", 1, "--json"
    )
    assert result.code == 0
    assert result.json["model"]["target"] == "x86:avx2"
    assert result.json["model"]["inputs"] == [{"name": "x", "type": "f32[1,3,8,8]"}]
    assert result.json["bytes"] == (tmp_path / "m.tersor").stat().st_size
    assert {"load", "link", "write"} <= set(result.json["seconds"])
    assert [one["name"] for one in result.json["passes"]]


@pytest.mark.parametrize("data", ["x.npy", "tersor_cli_model:batches"])
def test_compile_with_data(data: str, tersor: Callable[..., Result], tmp_path: Path) -> None:
    passes = "O3,quantize-annotate,quantize-calibrate"
    result = tersor("compile", MODEL, "-o", tmp_path / "m.tersor", "-p", passes, "--data", data, "--json")
    assert result.code == 0, result.err
    notes = [note for one in result.json["passes"] for note in one["notes"]]
    assert f"ranges by minmax from {1 if data == 'x.npy' else 4} batches" in notes[-1]
    result = tersor("bench", MODEL, "-p", passes, "--data", data, "--repeat", 1)
    assert result.code == 0, result.err


def test_plugins(tersor: Callable[..., Result], tmp_path: Path) -> None:
    plugin = "tersor.tests.passes.example_passes"
    for command in ("compile", "bench"):
        arguments = ["-o", tmp_path / "m.tersor"] if command == "compile" else ["--repeat", 1]
        result = tersor(command, "model.ir", *arguments, "-p", "test-drift,O3", "--plugin", plugin)
        assert result.code == 0, result.err
        assert "cannot be imported" in tersor(command, "model.ir", *arguments, "--plugin", "tersor_none").err


def test_run_reads_and_writes_named_arrays(tersor: Callable[..., Result], folder: Path, tmp_path: Path) -> None:
    x = torch.from_numpy(np.load(folder / "x.npy"))
    save_file({"x": x}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", x=x.numpy())
    for given in ("x.safetensors", "x.npz"):
        assert tersor("run", "model.tersor", "--input", tmp_path / given, "--output", tmp_path / "y.npz").code == 0
        (name, value), *rest = np.load(tmp_path / "y.npz").items()
        assert_expected(value, folder)
        assert rest == []
    assert tersor("run", "model.tersor", "--input", "x.npy", "--output", tmp_path / "y.safetensors").code == 0
    assert_expected(load_file(tmp_path / "y.safetensors")[name], folder)


def test_run_prints_what_came_out(tersor: Callable[..., Result], folder: Path) -> None:
    expected = np.load(folder / "expected.npy")
    (described,) = tersor("run", "model.tersor", "--input", "x.npy", "--threads", 1, "--json").json["outputs"]
    assert described["max"] == pytest.approx(expected.max(), rel=1e-4)
    assert described["largest_at"] == [0, expected.argmax()]
    assert "f32[1,4]" in tersor("run", "model.tersor", "--input", "x.npy").out


@pytest.mark.parametrize("model", ["model.tersor", "model.pt2"])
def test_bench_times_a_model(model: str, tersor: Callable[..., Result]) -> None:
    result = tersor("bench", model, "--threads", 1, "--repeat", 3, "--kernels", "--json")
    assert result.code == 0
    latency = result.json["latency"]
    assert latency["threads"] == 1
    assert 0 < latency["min"] <= latency["median"]
    assert len(latency["kernels"]) == result.json["model"]["kernels"]
    assert "ms median" in tersor("bench", model, "--repeat", 3).out


@pytest.fixture
def quick_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comparisons take two calls of each runtime."""
    from tersor.benchmarks import harness

    measure = harness.measure
    quick = harness.Schedule(rounds=1, block_seconds=0.0, minimum_calls=2, pause_seconds=0.0)
    monkeypatch.setattr(harness, "measure", lambda runners, inputs, *others: measure(runners, inputs, quick))


@pytest.mark.usefixtures("quick_comparison")
@pytest.mark.parametrize("model", ["model.pt2", "model.tersor", "renamed.bin"])
def test_bench_against_pytorch(model: str, tersor: Callable[..., Result], folder: Path) -> None:
    (folder / "renamed.bin").write_bytes((folder / "model.tersor").read_bytes())
    result = tersor("bench", model, "--against", "torch", "--repeat", 1, "--json")
    assert (result.code, result.err.count("tersor:")) == (0, 0), result.err
    rows = {row["runner"]: row for row in result.json["comparison"]["rows"]}
    assert set(rows) == {"torch", "tersor"}
    assert rows["tersor"]["difference"] < 1e-5


@pytest.mark.usefixtures("quick_comparison")
def test_bench_against_with_a_package_called_benchmarks(
    tersor: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "net.py").write_text(FACTORY)
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    result = tersor("bench", "benchmarks.net:make", "--against", "torch", "--repeat", 1, "--json")
    for name in ("benchmarks", "benchmarks.net"):
        monkeypatch.delitem(sys.modules, name)
    assert result.code == 0, result.err
    assert {row["runner"] for row in result.json["comparison"]["rows"]} == {"torch", "tersor"}


def test_targets_are_listed(tersor: Callable[..., Result]) -> None:
    result = tersor("targets", "--json").json
    assert "x86:znver4" in [target["name"] for target in result["targets"]]
    assert result["native"]["name"] in tersor("targets").out


def test_passes_are_listed(tersor: Callable[..., Result]) -> None:
    names = [one["name"] for one in tersor("passes", "--json").json["passes"]]
    assert {"canonicalize", "dce", "cse", "fold-constants", "fold-batchnorm", "fuse"} <= set(names)
    assert "fold-batchnorm" in tersor("passes").out


def test_opt_reads_and_writes_ir(tersor: Callable[..., Result], tmp_path: Path) -> None:
    result = tersor("opt", "model.ir", "-p", "fold-batchnorm", "--check-each", "-o", tmp_path / "out.ir", "--json")
    assert result.code == 0
    assert [one["changed"] for one in result.json["passes"]] == [True]
    assert "batch_norm" not in (tmp_path / "out.ir").read_text()
    assert (tmp_path / "out.safetensors").is_file()


@pytest.mark.parametrize("start", [("-c", "from tersor.cli.main import main; main()"), ("-m", "tersor")])
def test_the_installed_command_is_this_one(start: tuple[str, str], folder: Path) -> None:
    command = [sys.executable, *start, "run", "nothing.tersor"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == ["tersor: nothing.tersor: no such file"]


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compile nothing.pt2 -o m.tersor", "nothing.pt2: no such file"),
        ("compile weights.pt -o m.tersor", "not an exported program"),
        ("compile tersor_cli_model.py -o m.tersor", "neither an exported program nor IR text"),
        ("compile tersor_cli_model:mak -o m.tersor", "did you mean 'make'?"),
        ("compile tersor_cli_model:unsupported -o m.tersor", "matrix_exp"),
        ("compile model.pt2 -o m.tersor -p fold-bachnorm", "did you mean 'fold-batchnorm'?"),
        ("compile model.pt2 -o m.tersor -p dce,,cse", "pipeline, column 5"),
        ("compile model.pt2 -o m.tersor -p dce{fast=1}", "has no option 'fast'"),
        ("compile model.pt2 -o m.tersor --target x86:znver6", "did you mean 'x86:znver5'?"),
        ("compile model.pt2 -o nowhere/m.tersor", "nowhere is not an existing directory; create it first"),
        ("compile model.pt2 -o x.npy/m.tersor", "x.npy is not an existing directory"),
        ("compile cut.tersor -o m.tersor", "truncated or damaged"),
        ("compile model.pt2 -o m.tersor --data nothing.npz", "nothing.npz: no such file"),
        ("run nothing.tersor --input x.npy", "nothing.tersor: no such file"),
        ("run cut.tersor --input x.npy", "truncated or damaged"),
        ("run model.pt2 --input x.npy", "model.pt2"),
        ("run model.tersor", "the model takes 1 inputs (x: f32[1,3,8,8]), got 0"),
        ("run model.tersor --input x.npy --input x.npy", "takes 1 inputs (x: f32[1,3,8,8]), got 2"),
        ("run model.tersor --input expected.npy", "must have shape [1, 3, 8, 8], got [1, 4]"),
        ("run model.tersor --input double.npy", "must be float32, got float64; cast it first"),
        ("run model.tersor --input object.npy", "not readable as a .npy file"),
        ("run model.tersor --input text.npy", "holds something else than numbers"),
        ("run model.tersor --input named.npz", "the model has no input 'y'"),
        ("run model.tersor --input nothing.npy", "nothing.npy: no such file"),
        ("run model.tersor --input weights.pt", "arrays are kept in .npy, .npz, .safetensors files, not .pt"),
        (
            "run model.tersor --input x.npy --output y.txt",
            "arrays are kept in .npy, .npz, .safetensors files, not .txt",
        ),
        ("run model.tersor --input x.npy --output nowhere/y.npy", "nowhere is not an existing directory"),
        ("run model.tersor --input x.npy --threads 5000", "threads must be a whole number between 1 and"),
        ("bench nothing.pt2", "nothing.pt2: no such file"),
        ("bench cut.tersor", "truncated or damaged"),
        ("bench model.pt2 --against torhc", "unknown runtime 'torhc'"),
        ("bench model.tersor --against torhc", "unknown runtime 'torhc'"),
        ("opt nothing.ir", "nothing.ir: no such file"),
        ("opt model.ir -p fuze", "did you mean 'fuse'?"),
        ("opt model.ir -p dce{", "pipeline, column"),
        ("opt model.pt2", "model.pt2"),
        ("opt nothing.onnx", "nothing.onnx: no such file"),
        ("compile model.pt2 -o m.tersor --shape x=1", "--shape is for ONNX files"),
        ("compile net.onnx -o m.tersor --shape x=1,a", "--shape x=1,a: must be NAME=EXTENT,EXTENT,…"),
        ("compile model.pt2 -o m.tersor --constant x=1", "--constant is for inputs of ONNX files"),
        ("compile net.onnx -o m.tersor --constant x=a", "--constant x=a: must be NAME=NUMBER or NAME=NUMBER,NUMBER,…"),
        ("compile net.onnx -o m.tersor --constant 1", "--constant 1: must be NAME=NUMBER"),
        (
            "compile net.onnx -o m.tersor",
            "input 'x' is [batch,3,8,8]: give its shape, by shapes={'x': (…)} or --shape x=N,3,8,8",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: str, message: str, tersor: Callable[..., Result], folder: Path
) -> None:
    (folder / "cut.tersor").write_bytes((folder / "model.tersor").read_bytes()[:-2000])
    np.save(folder / "double.npy", np.load(folder / "x.npy").astype(np.float64))
    np.save(folder / "text.npy", np.full((1, 3, 8, 8), "x"))
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "named.npz", y=np.load(folder / "x.npy"))
    result = tersor(*arguments.split())
    assert result.code == 2
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("tersor: ")
    assert message in last
    assert "Traceback" not in result.err
    assert not (folder / "m.tersor").exists()


def test_a_wrong_option_is_exit_2(tersor: Callable[..., Result]) -> None:
    result = tersor("run", "model.tersor", "--imput", "x.npy")
    assert result.code == 2
    assert "--input" in result.err


def test_bench_against_needs_a_checkout(tersor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.cli.peers.find_spec", lambda name, package: None)
    result = tersor("bench", "model.pt2", "--against", "torch")
    assert result.code == 2
    assert "--against needs the benchmarks of a checkout" in result.err


# What lists look like --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_lists_of_passes_are_never_cut(
    columns: int, tersor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.cli import tables
    from tersor.passes import list_passes

    monkeypatch.setattr(tables, "console", lambda: SimpleNamespace(width=columns))
    lines = tersor("passes").out.splitlines()
    assert max(map(len, lines)) <= columns
    for info in list_passes():
        assert f"  {info.name} ({info.exactness.value})" in lines
    text = " ".join(" ".join(lines).split())
    assert all(info.summary in text for info in list_passes())


def test_one_pass_with_its_options(tersor: Callable[..., Result]) -> None:
    from tersor.passes import list_passes, parse_pipeline

    out = tersor("passes", "low-rank").out
    assert "One of: energy:SHARE, fixed:NUMBER, macs:RATIO, sensitivity:SCAN, vbmf." in out
    assert "method: str = tucker2" in out
    for info in list_passes():
        if not any(option.required for option in info.options):
            example = tersor("passes", info.name).out.rstrip().rpartition('-p "')[2].rstrip('"')
            assert str(parse_pipeline(example)) == info.name, "an example of defaults prints back as the name alone"
    result = tersor("passes", "lowrank")
    assert (result.code, result.err) == (2, "tersor: unknown pass 'lowrank'; did you mean 'low-rank'?\n")


@pytest.mark.parametrize("command", [("targets",), ("passes",), ("log", "stats", "tuning_logs")])
def test_no_boxes_in_a_pipe(
    command: tuple[str, ...], tersor: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    out = tersor(*command).out
    assert not set("┃│━─…") & set(out)
    assert all(line == line.rstrip() for line in out.splitlines())


def test_commands_are_grouped_by_use(tersor: Callable[..., Result]) -> None:
    out = tersor("--help").out
    headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Make:", "Measure:", "Look inside:", "Tune:", "Serve other machines:"]
    assert "..." not in out.partition("Make:")[2]


# Compiled kernels -------------------------------------------------------------------------------------------------


def test_kept_kernels_are_shown_and_removed(
    tersor: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelCache, "of_user", lambda: KernelCache(tmp_path / "kernels"))
    (tmp_path / "measured.times").write_text('{"key":"a","seconds":[0.1],"noise":0.02}\n')
    nothing = f"{tmp_path / 'kernels'}: 0 compiled kernels, 0.0 of at most 536.9 MB\n"
    assert tersor("cache", "show").out == f"{nothing}{tmp_path / 'measured.times'}: 1 measured times of graphs\n"
    assert tersor("compile", MODEL, "-o", tmp_path / "a.tersor", "--no-cache").code == 0
    assert tersor("cache", "show", "--json").json["kernels"] == 0
    assert tersor("compile", MODEL, "-o", tmp_path / "b.tersor").code == 0
    shown = tersor("cache", "show", "--json").json
    assert shown["folder"] == str(tmp_path / "kernels")
    assert 0 < shown["kernels"] < 20
    assert 0 < shown["bytes"] < shown["limit_bytes"]
    removed = tersor("cache", "clear")
    assert removed.out.startswith(f"{tmp_path / 'kernels'}: removed {shown['kernels']} compiled kernels, ")
    left = tersor("cache", "show", "--json").json
    assert (left["bytes"], left["times"]) == (0, 0)


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def warn(_: object) -> None:
        for category in (TersorWarning, FutureWarning):
            print(warnings.formatwarning("one,\n two", category, "file.py", 3), end="", file=sys.stderr)

    usual = warnings.formatwarning
    monkeypatch.setattr("tersor.cli.main.app", warn)
    main([])
    assert capsys.readouterr().err == "tersor: one, two\nfile.py:3: one, two\n"
    assert warnings.formatwarning is usual
