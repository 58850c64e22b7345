from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tersor import from_onnx
from tersor.cli.main import main
from tersor.ir import DType, Graph, TensorType, load_ir, parse, save_ir, structurally_equal
from tersor.ir.ops import AddOp, EmbeddingOp, ReluOp, SigmoidOp
from tersor.passes import parse_pipeline, run_passes
from tersor.passes.numeric import seeded_inputs
from tersor.tests.passes import example_passes  # noqa: F401  (registers them)
from tersor.tests.random_graphs import GraphBuilder


@pytest.fixture
def graph() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    x = b.op(ReluOp, b.batch_norm(b.conv(b.graph.inputs[0], 4)), location="act")
    return b.done(b.op(AddOp, b.op(SigmoidOp, x, location="bad"), b.graph.inputs[0]))


@pytest.fixture
def source(graph, tmp_path) -> Path:
    path = tmp_path / "model.ir"
    save_ir(graph, path)
    return path


@pytest.fixture
def tersor(capsys):
    """Runs the command line; returns exit code, standard output and standard error without what passes begin."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        stages = re.compile(r"^pass \S+ \(\d+ of \d+\) …\n", re.MULTILINE)
        return int(exit.value.code or 0), captured.out, stages.sub("", captured.err)

    return run


def test_text_to_stdout(tersor, source, graph):
    code, out, err = tersor("opt", source, "-p", "fold-batchnorm,fuse")
    assert (code, err) == (0, "")
    assert out == str(run_passes(graph, "fold-batchnorm,fuse"))


def test_a_pipe_is_told_which_pass_begins(source, capsys):
    with pytest.raises(SystemExit):
        main(["opt", str(source), "-p", "fold-batchnorm,fuse"])
    assert capsys.readouterr().err.startswith("pass fold-batchnorm (1 of ")


def test_text_and_weights_to_a_file(tersor, source, graph, tmp_path):
    target = tmp_path / "new" / "out.ir"
    assert tersor("opt", source, "-p", "O3", "-o", target) == (0, "", "")
    assert structurally_equal(load_ir(target), run_passes(graph, "O3"))


def test_onnx_to_a_file(tersor, source, graph, tmp_path):
    target = tmp_path / "new" / "out.onnx"
    assert tersor("opt", source, "-p", "fold-batchnorm", "-o", target) == (0, "", "")
    inputs = seeded_inputs(graph)
    torch.testing.assert_close(from_onnx(target).evaluate(*inputs), graph.evaluate(*inputs))


def test_text_alone(tersor, graph, tmp_path):
    path = tmp_path / "alone.ir"
    path.write_text(str(graph))
    code, _, err = tersor("opt", path, "-p", "dce,fuse", "--verify-each", "-o", tmp_path / "out.ir")
    assert (code, err) == (0, "")
    assert "fused(" in (tmp_path / "out.ir").read_text()
    assert not (tmp_path / "out.safetensors").exists()


def test_every_instrument_at_once(tersor, source, tmp_path):
    flags = ["--verify-each", "--check-each", "--print-after-all", "--timing", "--dump-dir", tmp_path / "d"]
    code, out, err = tersor("opt", source, "-p", "O3", *flags, "--reproducer-dir", tmp_path / "r")
    assert code == 0
    assert "fused(" in out
    count = len(parse_pipeline("O3").passes)
    assert f"# ---- after fuse-elementwise ({count} of {count}) ----" in err
    assert f"in {count} passes" in err
    assert len(list((tmp_path / "d").iterdir())) == count + 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("flag", "count"), [("--print-before-all", 3), ("--print-after-all", 3), ("--print-on-change", 1)]
)
def test_printing(tersor, source, flag, count):
    _, _, err = tersor("opt", source, "-p", "dce,fuse", flag)
    assert err.count("# ---- ") == count


def test_json(tersor, source):
    code, out, _ = tersor("opt", source, "-p", "fold-batchnorm", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["pipeline"] == "fold-batchnorm"
    assert result["passes"][0]["applied"] == ["fold-batchnorm: batch_norm at 'bn'"]
    parse(result["ir"])


def test_bisect_limit(tersor, source, graph):
    assert tersor("opt", source, "-p", "O3", "--bisect-limit", 0)[1] == str(graph)


def test_bisect(tersor, source):
    code, out, _ = tersor("opt", source, "-p", "O1,test-wrong", "--bisect")
    assert code == 1
    assert out.startswith("pass 'test-wrong' goes wrong at rewrite 2 (bad-rule: sigmoid at 'bad'): output 0 differs by")
    code, out, _ = tersor("opt", source, "-p", "O1,test-wrong", "--bisect", "--json")
    assert json.loads(out)["culprit"]["rewrite"] == "bad-rule: sigmoid at 'bad'"


def test_bisect_of_a_right_pipeline(tersor, source):
    assert tersor("opt", source, "-p", "O3", "--bisect") == (0, "all rewrites of 'O3' are right\n", "")
    assert json.loads(tersor("opt", source, "-p", "O3", "--bisect", "--json")[1])["culprit"] is None


def test_given_inputs(tersor, source, tmp_path):
    save_file({"x": torch.zeros(1, 4, 6, 6)}, tmp_path / "inputs.safetensors")
    flags = ["--check-each", "--inputs", tmp_path / "inputs.safetensors"]
    assert tersor("opt", source, "-p", "O3", *flags)[0] == 0


def test_reproducer_command_fails_the_same_way(tersor, source, tmp_path, monkeypatch):
    """The command is run in a process of its own, to which only its plugin brings the failing pass."""
    monkeypatch.chdir(tmp_path)
    flags = ["--check-each", "--reproducer-dir", "r", "--plugin", "tersor.tests.passes.example_passes"]
    code, _, err = tersor("opt", source, "-p", "O1,test-wrong,dce", *flags)
    assert code == 2
    message, _, where = err.splitlines()[-1].partition("; reproducer written to ")
    assert message.startswith("tersor: pass 'test-wrong' failed: output 0 differs by")
    command = next(line for line in Path(where).read_text().splitlines() if line.startswith("#   tersor opt"))
    program = [sys.executable, "-c", "from tersor.cli.main import main; main()"]
    arguments = shlex.split(command.removeprefix("#   tersor "))
    again = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (2, message)


def test_passes(tersor):
    code, out, _ = tersor("passes")
    assert code == 0
    for text in (
        "fold-batchnorm",
        "canonicalize",
        "O3",
        "close",
    ):
        assert text in out
    assert "max_sweeps: int = 20" in tersor("passes", "canonicalize")[1]
    assert "sizes: tuple[int, ...] = []" in tersor("passes", "test-options")[1]
    described = json.loads(tersor("passes", "--json")[1])
    assert {"canonicalize", "fuse"} <= {entry["name"] for entry in described["passes"]}
    assert described["presets"]["O1"] == "canonicalize,dce"


@pytest.mark.parametrize("command", ["opt", "passes"])
def test_help_has_examples(tersor, command):
    code, out, _ = tersor(command, "--help")
    assert code == 0
    assert "Examples:" in out


# Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt", "SOURCE", "-p", "O1,fsue"], "pipeline, column 4: unknown pass 'fsue'; did you mean 'fuse'?"),
        (["opt", "SOURCE", "-p", "canonicalize{x=1}"], "pass 'canonicalize' has no option 'x'; known: max_sweeps"),
        (["opt", "missing.ir"], "missing.ir: no such file"),
        (["opt", "."], ".: not a regular file; name a file of IR text"),
        (["opt", "bad.ir"], "bad.ir: line 1, column 19: unknown op 'rleu'; did you mean 'relu'?"),
        (["opt", "alone.ir", "--bisect"], "alone.safetensors: no such weights file"),
        (
            ["opt", "zero.ir"],
            "zero.ir: line 2, column 8: attributes of max_pool2d: kernel, stride and dilation must be",
        ),
        (["opt", "lookup.ir", "--check-each", "--inputs", "ids.st"], "embedding: cannot be evaluated on these"),
        (["opt", "broken.ir"], "broken.safetensors: not a readable safetensors file"),
        (["opt", "newer.ir"], "IR version 99 is not readable here"),
        (["opt", "SOURCE", "-o", "bad.ir/out.ir"], "cannot write bad.ir"),
        (["opt", "SOURCE", "--dump-dir", "bad.ir"], "cannot write bad.ir"),
        (["opt", "SOURCE", "--check-each", "--inputs", "missing.st"], "missing.st: not a readable safetensors file"),
        (["opt", "SOURCE", "--check-each", "--inputs", "other.st"], "other.st: has no tensor for input 'x', only y"),
        (["opt", "SOURCE", "-p", "test-crash"], "pass 'test-crash' failed: ValueError: cannot cope with"),
        (["opt", "SOURCE", "--plugin", "no.such.module"], "plugin 'no.such.module' cannot be imported"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tersor, source, graph, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.ir").write_text("graph @g() { %0 = rleu : f32[] }")
    Path("alone.ir").write_text(str(graph))
    Path("broken.ir").write_text(str(graph))
    Path("broken.safetensors").write_bytes(b"\x10garbage")
    Path("newer.ir").write_text("# tersor ir 99\n" + str(graph))
    Path("zero.ir").write_text(
        "graph @g(%x: f32[1,1,2,2]) {\n  %0 = max_pool2d(%x) {kernel=[2,2], stride=[0,0]} : f32[]"
    )
    lookup = GraphBuilder({"ids": TensorType((1,), DType.I64)})
    save_ir(lookup.done(lookup.op(EmbeddingOp, lookup.weight(3, 2), lookup.graph.inputs[0])), "lookup.ir")
    save_file({"ids": torch.tensor([3])}, "ids.st")
    save_file({"y": torch.zeros(1)}, "other.st")
    code, out, err = tersor(*(source if argument == "SOURCE" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("tersor: ")
    assert err.count("\n") == 1


def test_read_only_output(tersor, source, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    code, _, err = tersor("opt", source, "-o", tmp_path / "out.ir")
    assert code == 2
    assert err == f"tersor: cannot write {tmp_path / 'out.ir'}: Permission denied; choose another output path\n"


@pytest.mark.parametrize("arguments", [["opt"], ["opt", "x.ir", "--no-such-option"], ["no-such-command"]])
def test_wrong_usage_exits_with_2(tersor, arguments):
    code, _, err = tersor(*arguments)
    assert code == 2
    assert "Usage:" in err


def test_errors_that_are_no_mistake_of_the_user_are_not_hidden(monkeypatch, source):
    monkeypatch.setattr("tersor.cli.opt_driver.import_plugins", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["opt", str(source)])


# Target and data ------------------------------------------------------------------------------------------------


def test_passes_that_need_a_target_and_data(tersor, source, tmp_path, monkeypatch):
    monkeypatch.setattr("tersor.measuring.runs_here", lambda target: False)  # so that nothing is timed
    (tmp_path / "tersor_opt_data.py").write_text("import torch\nloader = lambda: torch.randn(3, 1, 4, 6, 6)\n")
    monkeypatch.chdir(tmp_path)
    options = ["--target", "x86:znver4", "--data", "tersor_opt_data:loader"]
    code, out, err = tersor("opt", source, "-p", "O2,quantize", *options)
    assert code == 0, err
    assert "quantize(" in out
    code, _, err = tersor("opt", source, "-p", "O2,quantize", "--target", "x86:avx2")
    assert code == 2
    assert "needs calibration data" in err


def test_reproducers_name_target_and_data(tersor, source, tmp_path, monkeypatch):
    save_file({"x": torch.full((1, 4, 6, 6), torch.nan)}, tmp_path / "nan.safetensors")
    monkeypatch.chdir(tmp_path)
    options = ["--target", "x86:znver4", "--data", "nan.safetensors"]
    code, _, err = tersor("opt", source, "-p", "O2,quantize", *options, "--reproducer-dir", tmp_path / "r")
    assert code == 2
    text = (tmp_path / "r" / "quantize-calibrate.ir").read_text()
    (line,) = [line for line in text.splitlines() if "tersor opt" in line]
    assert " -p quantize-calibrate,narrow-weights,bias-correction,quantize-realize,activation-tables,fuse-" in line
    assert " --target x86:znver4 --data nan.safetensors" in line
    again, _, message = tersor(*shlex.split(line.lstrip("# "))[1:])
    assert again == 2
    assert message.partition("; reproducer")[0].strip() in err
