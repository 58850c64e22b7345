from __future__ import annotations

import pytest
import torch

import tersor
import tersor.tests.passes.example_passes
from tersor.ir import DType, Graph, IRError, TensorType, TersorError, load_ir, parse
from tersor.ir.ops import AddOp, EmbeddingOp, ReluOp, SigmoidOp
from tersor.passes import PassError, PassManager, parse_pipeline, run_passes
from tersor.passes.instruments import (
    CheckEach,
    DumpEach,
    Instrument,
    PrintIR,
    PrintTiming,
    Reproducer,
    VerifyEach,
    When,
)
from tersor.tests.random_graphs import GraphBuilder


@pytest.fixture
def graph() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    x = b.batch_norm(b.conv(b.graph.inputs[0], 4))
    x = b.op(ReluOp, x, location="act")
    x = b.op(SigmoidOp, x, location="bad")
    return b.done(b.op(ReluOp, b.op(AddOp, x, b.graph.inputs[0]), location="last"))


def test_input_graph_is_not_changed(graph):
    before, weights = str(graph), dict(graph.weights)
    run_passes(graph, "O3")
    assert str(graph) == before
    assert dict(graph.weights) == weights


def test_public_signature(graph):
    optimized = tersor.run_passes(graph, "fold-batchnorm,fuse", target="x86:native", calibration=iter([]))
    assert [op.name for op in optimized.ops if op.inputs] == ["fused"]


def test_report(graph):
    outcome = PassManager(parse_pipeline("O1,fold-batchnorm,fold-batchnorm,test-options{number=3}")).run(graph)
    records = outcome.report.records
    assert [record.name for record in records] == [
        "canonicalize",
        "dce",
        "fold-batchnorm",
        "fold-batchnorm",
        "test-options",
    ]
    assert [record.changed for record in records] == [False, False, True, False, False]
    assert records[2].applied == ("fold-batchnorm: batch_norm at 'bn'",)
    assert records[2].ops_after < records[2].ops_before
    assert records[4].notes == ("nothing to do", "3")
    assert records[4].text == "test-options{number=3}"
    assert outcome.report.seconds == sum(record.seconds for record in records)
    assert outcome.report.to_json()[2]["applied"] == ("fold-batchnorm: batch_norm at 'bn'",)


def test_weights_that_nothing_names_are_forgotten(graph):
    assert sorted(run_passes(graph, "fold-batchnorm,dce").weights) == ["conv.bias..folded", "conv.weight..folded"]


def test_bisect_limit(graph):
    def applied(limit: int | None) -> int:
        outcome = PassManager(parse_pipeline("O3"), (VerifyEach(), CheckEach()), limit).run(graph)
        return sum(len(record.applied) for record in outcome.report.records)

    total = applied(None)
    assert [applied(limit) for limit in range(total + 2)] == [*range(total + 1), total]
    with pytest.raises(TersorError, match="bisect limit must be 0 or more, not -1"):
        PassManager(parse_pipeline("O3"), bisect_limit=-1)


def test_malformed_input_is_told_before_any_pass(graph):
    graph.reorder(graph.ops[::-1])
    with pytest.raises(IRError, match="is not defined before it"):
        run_passes(graph, "")


def test_text_without_weights(graph):
    optimized = run_passes(parse(str(graph)), "O3")
    assert any(op.name == "batch_norm" for op in optimized.ops)


def test_passes_may_add_weights_to_a_graph_without():
    """The constant that joins two additions is a new weight; the graph's own ones are still not loaded afterwards."""
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    shifted = b.op(AddOp, b.conv(b.graph.inputs[0], 4, bias=False), b.number(0.5))
    graph = parse(str(b.done(shifted)))
    outcome = PassManager(parse_pipeline("canonicalize"), (VerifyEach(),)).run(graph)
    assert [op.name for op in outcome.graph.ops if op.inputs] == ["conv2d"]
    assert len(outcome.graph.weights) == 1


def test_calibration_iterators_are_kept(graph):
    seen = []

    class Look(Instrument):
        def after(self, step, graph, record):
            seen.append(record.name)

    run_passes(graph, "dce,cse", calibration=(batch for batch in [(torch.zeros(1),)]), instruments=[Look()])
    assert seen == ["dce", "cse"]


# Checks ---------------------------------------------------------------------------------------------------------


def test_any_exception_names_the_pass(graph):
    with pytest.raises(PassError, match="pass 'test-crash' failed: ValueError: cannot cope with 12 ops") as caught:
        run_passes(graph, "dce,test-crash")
    assert isinstance(caught.value.__cause__, ValueError)


def test_malformed_result_is_found_in_any_case(graph):
    with pytest.raises(PassError, match=r"the pipeline left a malformed graph .*verify each pass"):
        run_passes(graph, "test-malformed")


def test_verify_each_names_the_pass(graph):
    with pytest.raises(PassError, match="pass 'test-malformed' failed: it left a malformed graph: conv2d at 'conv'"):
        run_passes(graph, "test-malformed,dce", instruments=[VerifyEach()])


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("true", "reports the IR as changed, but the text did not"),
        ("false", "reports the IR as unchanged, but the text did"),
    ],
)
def test_verify_each_finds_a_false_claim(graph, claim, message):
    with pytest.raises(PassError, match=message):
        run_passes(graph, f"test-liar{{claim={claim}}}", instruments=[VerifyEach()])


def test_check_each_names_pass_output_and_difference(graph):
    with pytest.raises(
        PassError, match=r"pass 'test-wrong' failed: output 0 differs by [0-9.]+ .*more than the tolerance"
    ):
        run_passes(graph, "O1,test-wrong", instruments=[CheckEach()])


def test_check_each_catches_a_doubled_output():
    b = GraphBuilder({"x": TensorType((2, 3))})
    graph = b.done(b.op(SigmoidOp, b.graph.inputs[0], location="bad"))
    with pytest.raises(PassError, match=r"more than the tolerance 0\.5"):
        run_passes(graph, "test-wrong", instruments=[CheckEach([torch.full((2, 3), -2.0)], tolerance=0.5)])


def test_check_each_compares_with_the_graph_before_the_pass(graph):
    run_passes(graph, "test-drift,test-drift", instruments=[VerifyEach(), CheckEach()])
    with pytest.raises(PassError, match=r"more than the tolerance 1e-05"):
        run_passes(graph, "test-drift", instruments=[CheckEach(tolerance=1e-5)])


def test_check_each_tells_inputs_that_cannot_be_evaluated():
    b = GraphBuilder({"ids": TensorType((1,), DType.I64)})
    graph = b.done(b.op(EmbeddingOp, b.weight(3, 2), b.graph.inputs[0]))
    with pytest.raises(IRError, match="embedding: cannot be evaluated on these operands: index out of range"):
        run_passes(graph, "dce", instruments=[CheckEach([torch.tensor([7])])])


def test_check_each_takes_inputs_and_tolerance(graph):
    run_passes(graph, "test-wrong", instruments=[CheckEach([torch.randn(1, 4, 6, 6)], tolerance=10.0)])
    with pytest.raises(IRError, match=r"input 'x' must have shape \[1, 4, 6, 6\]"):
        run_passes(graph, "dce", instruments=[CheckEach([torch.randn(2, 2)])])


# Printing, dumps, timing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "banners"),
    [
        (When.BEFORE_ALL, ["before dce (1 of 3)", "before fuse-epilogue (2 of 3)", "before fuse-elementwise (3 of 3)"]),
        (When.AFTER_ALL, ["after dce (1 of 3)", "after fuse-epilogue (2 of 3)", "after fuse-elementwise (3 of 3)"]),
        (When.ON_CHANGE, ["after fuse-elementwise (3 of 3)"]),
    ],
)
def test_printing(graph, capsys, when, banners):
    run_passes(graph, "dce,fuse", instruments=[PrintIR(when)])
    printed = capsys.readouterr().err
    assert [line.strip("# -") for line in printed.splitlines() if line.startswith("# ----")] == banners
    assert printed.count("graph @test(") == len(banners)


def test_dumps(graph, tmp_path):
    optimized = run_passes(graph, "canonicalize,fuse", instruments=[DumpEach(tmp_path / "d", weights=True)])
    names = sorted(path.name for path in (tmp_path / "d").iterdir() if path.suffix == ".ir")
    assert names == ["00-input.ir", "01-canonicalize.ir", "02-fuse-epilogue.ir", "03-fuse-elementwise.ir"]
    assert str(load_ir(tmp_path / "d" / "03-fuse-elementwise.ir")) == str(optimized)


def test_dumps_to_an_unusable_folder(graph, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TersorError, match=r"cannot write .*choose another output path"):
        run_passes(graph, "dce", instruments=[DumpEach(tmp_path / "file")])


def test_timing(graph, capsys):
    run_passes(graph, "canonicalize{max_sweeps=3},fuse", instruments=[PrintTiming()])
    printed = capsys.readouterr().err
    assert "canonicalize{max_sweeps=3}" in printed
    assert "in 3 passes" in printed


# Reproducer -----------------------------------------------------------------------------------------------------


def test_reproducer_fails_the_same_way(graph, tmp_path):
    with pytest.raises(PassError, match="reproducer written to") as caught:
        run_passes(graph, "O1,test-wrong,dce", instruments=[CheckEach(), Reproducer(tmp_path)])
    again = load_ir(tmp_path / "test-wrong.ir")
    with pytest.raises(PassError) as repeated:
        run_passes(again, "test-wrong,dce", instruments=[CheckEach()])
    assert str(caught.value).startswith(str(repeated.value))
    text = (tmp_path / "test-wrong.ir").read_text()
    assert f"tersor opt {tmp_path / 'test-wrong.ir'} -p test-wrong,dce --check-each" in text
    assert str(repeated.value) in text


def test_reproducer_keeps_given_inputs_and_limit(graph, tmp_path):
    inputs = [torch.randn(1, 4, 6, 6)]
    instruments = [VerifyEach(), CheckEach(inputs, tolerance=1e-3), Reproducer(tmp_path)]
    with pytest.raises(PassError):
        run_passes(graph, "fold-batchnorm,test-wrong", instruments=instruments, bisect_limit=3)
    text = (tmp_path / "test-wrong.ir").read_text()
    assert "--verify-each --check-each --tolerance 0.001 --inputs" in text
    assert "--bisect-limit 2" in text
    assert (tmp_path / "inputs.safetensors").exists()


def test_no_failure_writes_no_reproducer(graph, tmp_path):
    run_passes(graph, "O3", instruments=[Reproducer(tmp_path / "never")])
    assert not (tmp_path / "never").exists()
