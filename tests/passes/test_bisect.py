from __future__ import annotations

import pytest
import torch

import tersor.tests.passes.example_passes  # noqa: F401 (registers the passes)
from tersor.ir import DType, IRError, TensorType
from tersor.ir.ops import AddOp, EmbeddingOp, ReluOp, SigmoidOp
from tersor.passes import PassManager, bisect, parse_pipeline
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.tests.random_graphs import GraphBuilder


def graph_with_sigmoids(*locations: str):
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    x = b.conv(b.graph.inputs[0], 4)
    for index, location in enumerate(locations):
        x = b.op(AddOp, x, b.op(SigmoidOp, b.op(ReluOp, x, location=f"relu{index}"), location=location))
    return b.done(x)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_planted_wrong_rewrite_is_found_by_its_numbers(position):
    locations = ["good"] * 8
    locations[position] = "bad"
    culprit = bisect(graph_with_sigmoids(*locations), "O1,test-wrong,dce,fuse")
    assert culprit is not None
    assert (culprit.one, culprit.index) == ("test-wrong", 2)
    assert culprit.rewrite == "bad-rule: sigmoid at 'bad'"
    assert culprit.number == position + 2  # after one relu-again for each relu before it, and its own
    assert "output 0 differs by" in culprit.reason
    assert "rewrite" in str(culprit)


def test_limit_below_the_culprit_is_right():
    graph = graph_with_sigmoids("good", "bad", "good")
    culprit = bisect(graph, "test-wrong")
    inputs = seeded_inputs(graph)
    reference = graph.evaluate(*inputs)
    for limit, wrong in ((culprit.number - 1, False), (culprit.number, True)):
        limited = PassManager(parse_pipeline("test-wrong"), bisect_limit=limit).run(graph).graph
        assert deviation(reference, limited.evaluate(*inputs)).exceeds(1e-4) == wrong


def test_first_of_several_is_found():
    culprit = bisect(graph_with_sigmoids("good", "one", "two"), "test-wrong{location=two},test-wrong{location=one}")
    assert culprit.rewrite == "bad-rule: sigmoid at 'two'"
    assert culprit.one == "test-wrong{location=two}"


def test_malformed_graph_is_found():
    culprit = bisect(graph_with_sigmoids("good"), "O1,test-malformed,dce")
    assert culprit.rewrite.startswith("misplace: ")
    assert "malformed graph" in culprit.reason


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        ("test-retype", "output 0 is torch.float64 [1, 4, 6, 6] instead of torch.float32"),
        ("test-retype{shape=true}", "output 0 is torch.float32 [144] instead of torch.float32 [1, 4, 6, 6]"),
    ],
)
def test_output_of_another_type_is_found(one, reason):
    culprit = bisect(graph_with_sigmoids("good"), f"O1,{one}")
    assert (culprit.one, culprit.number > 0) == (one, True)
    assert culprit.rewrite.startswith("retype: ")
    assert reason in culprit.reason


def test_graph_that_cannot_be_evaluated_is_found():
    b = GraphBuilder({"ids": TensorType((2,), DType.I64)})
    graph = b.done(b.op(EmbeddingOp, b.weight(3, 2), b.graph.inputs[0], location="table"))
    culprit = bisect(graph, "dce,test-unevaluable")
    assert (culprit.one, culprit.rewrite) == ("test-unevaluable", "out-of-table: embedding at 'table'")
    assert "cannot be evaluated" in culprit.reason


def test_crash_without_a_rewrite_is_found():
    culprit = bisect(graph_with_sigmoids("good"), "O3,test-crash")
    assert (culprit.one, culprit.number, culprit.rewrite) == ("test-crash", 0, "")
    assert "no rewrite of its own" in str(culprit)


def test_right_pipeline_has_no_culprit():
    assert bisect(graph_with_sigmoids("good"), "O3") is None
    assert bisect(graph_with_sigmoids("bad"), "test-wrong", tolerance=10.0) is None


def test_given_inputs():
    graph = graph_with_sigmoids("bad")
    assert bisect(graph, "test-wrong", inputs=[torch.zeros(1, 4, 6, 6)]) is not None
    with pytest.raises(IRError, match="input 'x' must be f32"):
        bisect(graph, "test-wrong", inputs=[torch.zeros(1, 4, 6, 6, dtype=torch.int32)])


# Numbers --------------------------------------------------------------------------------------------------------


def test_deviation_is_relative_to_the_output():
    worst = deviation(
        [torch.tensor([1.0]), torch.tensor([100.0, -200.0])], [torch.tensor([1.1]), torch.tensor([102.0, -200.0])]
    )
    assert worst.output == 0
    assert worst.relative == pytest.approx(0.1)
    assert deviation([torch.tensor([3.0])], [torch.tensor([6.0])]).exceeds(0.5)


def test_deviation_of_nan_and_infinity():
    odd = torch.tensor([float("nan"), float("inf"), 1.0])
    assert deviation([odd], [odd.clone()]).difference == 0
    assert deviation([odd], [torch.tensor([0.0, float("inf"), 1.0])]).difference == float("inf")
    assert deviation([torch.zeros(0)], [torch.zeros(0)]).difference == 0


def test_deviation_of_other_outputs():
    with pytest.raises(IRError, match="2 outputs instead of 1"):
        deviation([torch.zeros(1)], [torch.zeros(1)] * 2)
    with pytest.raises(IRError, match=r"output 0 is torch.float32 \[2\] instead of torch.float32 \[1\]"):
        deviation([torch.zeros(1)], [torch.zeros(2)])


def test_seeded_inputs_stay_inside_of_tables():
    types = {
        "ids": TensorType((64,), DType.I64),
        "mask": TensorType((64,), DType.BOOL),
        "other": TensorType((64,), DType.I32),
    }
    b = GraphBuilder(types)
    ids, _, other = b.graph.inputs
    shifted = b.op(AddOp, ids, ids)
    graph = b.done(b.op(EmbeddingOp, b.weight(30, 4), shifted), other)
    first, mask, second = seeded_inputs(graph)
    assert 2 < first.max() < 30
    assert mask.dtype == torch.bool
    assert second.max() == 1
    assert torch.equal(first, seeded_inputs(graph)[0])
    assert not torch.equal(first, seeded_inputs(graph, seed=1)[0])


def test_seeded_bytes_take_all_values():
    b = GraphBuilder({"x": TensorType((5000,), DType.I8), "y": TensorType((5000,), DType.U8)})
    signed, unsigned = seeded_inputs(b.done(*b.graph.inputs))
    assert (signed.min(), signed.max()) == (-128, 127)
    assert (unsigned.min(), unsigned.max()) == (0, 255)
