"""``low-rank``: what it refuses, what it leaves behind, and what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import tersor
from tersor.ir import Graph, TensorType, parse, structurally_equal
from tersor.ir.ops import Conv2dOp, FusedOp, LinearOp, MatmulOp, ReluOp
from tersor.passes import PassError, PassManager, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.passes.lowrank.planted import RANK, Clock, conv_graph, linear_graph, planted
from tersor.tests.random_graphs import GraphBuilder

EXACT = f"low-rank{{ranks=fixed:{RANK}}}"


def run(graph: Graph, pipeline: str, **options: Any):
    return PassManager(as_pipeline(pipeline)).run(graph, **options)


def net() -> Graph:
    """Two planted convolutions with batch norm and activation between, a 1x1 one, and a linear layer."""
    b = GraphBuilder({"x": TensorType((1, 20, 9, 9))})
    pad = (1, 1, 1, 1)
    first, second = (
        b.constant(planted("tucker2", 24, inputs, seed=inputs), f"c{inputs}.weight") for inputs in (20, 24)
    )
    x = b.op(Conv2dOp, b.graph.inputs[0], first, None, location="first", padding=pad)
    x = b.op(ReluOp, b.batch_norm(x))
    x = b.op(Conv2dOp, x, second, b.weight(24), location="second", padding=pad, stride=(2, 2))
    x = b.op(ReluOp, x)
    return b.done(b.conv(x, 8, 1, location="pointwise"))


@pytest.mark.parametrize("prefix", ["", "O2,", "O3,"])
def test_runs_before_and_after_folding_and_fusing(prefix: str):
    graph = net()
    outcome = run_checked(graph, prefix + EXACT, fires="low-rank")
    assert sum(isinstance(op, FusedOp) for op in outcome.graph.ops) == (2 if prefix == "O3," else 0)
    assert rules(outcome).count("low-rank") == (4 if prefix == "O3," else 2)  # with two groups taken apart
    assert structurally_equal(parse(str(outcome.graph), outcome.graph.weights), outcome.graph)


def test_report():
    outcome = run(net(), EXACT)
    first, second, whole = outcome.report.records[0].notes
    assert re.fullmatch(
        r"first at rank 4x4: multiply-adds 349920 -> 25920 \(0\.074\), not measured, error \d\.\d+e-0[67]", first
    )
    assert second.startswith("second at rank 4x4: multiply-adds 129600 -> ")
    assert re.match(r"whole graph: multiply-adds 484320 -> \d+ \(0\.\d+\), not measured; before fine-tuning, ", whole)
    assert refusals(outcome) == [
        "low-rank refused conv2d at 'pointwise': tucker2 is for convolutions whose windows are larger than 1x1; use svd"
    ]


def test_error_is_that_of_the_layer_in_its_place():
    graph = net()
    batch = seeded_inputs(graph, 3)
    outcome = run(graph, "low-rank{ranks=fixed:2}", calibration=[batch])
    (note,) = [line for line in outcome.report.records[0].notes if line.startswith("second")]
    small = run_passes(graph, "low-rank{ranks=fixed:2}")
    core = [op for op in small.ops if isinstance(op, Conv2dOp) and op.location == "second"]
    expected, found = captured(graph, batch)
    for op in core:
        found = op.evaluate(found, op.weight.op.evaluate(), None if op.bias is None else op.bias.op.evaluate())
    error = float((found - expected).norm() / expected.norm())
    assert float(note.split("error ")[1]) == pytest.approx(error, rel=1e-2)


def captured(graph: Graph, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer "second" makes, and what it reads."""
    seen: dict = {}
    tersor.ir.evaluate(graph, batch, lambda op, results: seen.update({op.results[0]: results[0]}))
    (op,) = [one for one in graph.ops if one.location == "second"]
    return seen[op.result], seen[op.inputs[0]]


# The referee ------------------------------------------------------------------------------------------------------


def test_keeps_what_is_faster():
    clock = Clock()
    outcome = run(net(), EXACT, latency=clock)
    first, _, whole = outcome.report.records[0].notes
    assert "first at rank 4x4: multiply-adds 349920 -> 25920 (0.074), 0.3499 -> 0.02592 ms (0.074), error" in first
    assert "0.4843 -> " in whole
    assert rules(outcome) == ["low-rank"] * 2
    assert len(clock.asked) == 3


def test_undoes_what_is_not():
    launch = 70e-6  # two launches more cost the second layer more than it saves, but not the first
    graph = net()
    outcome = run(graph, EXACT, latency=Clock(launch=launch))
    first, second, _ = outcome.report.records[0].notes
    assert first.startswith("first at rank 4x4: multiply-adds")
    assert second.startswith("second at rank 4x4 undone, not faster: multiply-adds 129600 -> ")
    assert "0.1996 -> 0.2" in second
    assert kinds(outcome.graph) == ["conv2d"] * 3 + ["batch_norm", "relu", "conv2d", "relu", "conv2d"]
    everything = run(graph, f"low-rank{{ranks=fixed:{RANK},keep=all}}", latency=Clock(launch=launch))
    assert rules(everything) == ["low-rank"] * 2
    assert "undone" not in "".join(everything.report.records[0].notes)


@pytest.mark.parametrize("pipeline", [EXACT, f"O3,{EXACT}"])
def test_leaves_the_graph_alone_when_nothing_stays(pipeline: str):
    graph = net()
    outcome = run(graph, pipeline, latency=Clock(factor=100.0))
    assert structurally_equal(outcome.graph, run_passes(graph, pipeline.removesuffix(EXACT).rstrip(",")))
    assert not outcome.report.records[-1].changed
    assert all(" undone, not faster: " in note for note in outcome.report.records[-1].notes)


def test_gain_within_the_noise_is_no_gain():
    outcome = run(net(), EXACT, latency=Clock(noise=0.99))
    assert not outcome.report.records[0].changed


def test_slower_as_a_whole_is_undone():
    class Whole(Clock):
        def compare(self, before: Graph, after: Graph):
            self.factor = 100.0 if len(before.ops) > 5 else 1.0
            return super().compare(before, after)

    outcome = run(net(), EXACT, latency=Whole())
    assert not outcome.report.records[0].changed
    assert outcome.report.records[0].notes[-1].startswith("whole graph undone, slower: ")


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "graph", "reason"),
    [
        ("svd", conv_graph(planted("tucker2")), "svd is for linear layers and 1x1 convolutions, not 3x3"),
        (
            "spatial",
            conv_graph(planted("svd")),
            "spatial is for convolutions whose windows are higher and wider than 1",
        ),
        ("spatial", linear_graph(torch.ones(8, 9)), "spatial is for convolutions whose windows are higher and wider"),
        ("tucker2", linear_graph(torch.ones(8, 9)), "tucker2 is for convolutions whose windows are larger than 1x1"),
        ("tucker2", conv_graph(planted("tucker2", 24, 12), groups=2), "it has 2 groups"),
        ("tucker2", conv_graph(planted("tucker2") * float("nan")), "its weight has numbers that are not finite"),
    ],
)
def test_refusals(method: str, graph: Graph, reason: str):
    outcome = run(graph, f"low-rank{{method={method},ranks=fixed:2}}")
    assert not outcome.report.records[0].changed
    assert outcome.report.records[0].notes == ("no layer to factorize",)
    (refusal,) = refusals(outcome)
    assert reason in refusal


def test_refuses_weights_that_are_computed():
    b = GraphBuilder({"x": TensorType((4, 12)), "w": TensorType((12, 12))})
    weight = b.op(MatmulOp, b.graph.inputs[1], b.weight(12, 12))
    outcome = run(b.done(b.op(LinearOp, b.graph.inputs[0], weight, None)), "low-rank{method=svd,ranks=fixed:2}")
    assert "its weight is no constant" in refusals(outcome)[0]
    b = GraphBuilder({"x": TensorType((4, 12)), "b": TensorType((12,))})
    graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.weight(12, 12), b.graph.inputs[1]))
    assert "its bias is none" in refusals(run(graph, "low-rank{method=svd,ranks=fixed:2}"))[0]


def test_refuses_other_element_types():
    graph = run_passes(conv_graph(planted("tucker2")), "to-bf16")
    assert "it computes in bf16; factorize before changing element types" in refusals(run(graph, EXACT))[0]


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_does_not_factorize_factors(method: str):
    once = run_passes(conv_graph(planted(method)), f"low-rank{{method={method},ranks=fixed:8}}")
    for other in ("svd", "spatial", "tucker2"):
        outcome = run(once, f"low-rank{{method={other},ranks=fixed:2}}")
        assert not outcome.report.records[0].changed
    assert any("factors of one layer already" in line for line in refusals(outcome))


def test_shared_weight_is_factorized_once():
    b = GraphBuilder({"x": TensorType((1, 24, 8, 8))})
    weight = b.constant(planted("tucker2", 24, 24), "shared.weight")
    x = b.op(ReluOp, b.op(Conv2dOp, b.graph.inputs[0], weight, b.weight(24), location="one", padding=(1, 1, 1, 1)))
    y = b.op(ReluOp, b.op(Conv2dOp, x, weight, None, location="two", stride=(2, 2)))
    graph = b.done(y)
    small = run_checked(graph, EXACT, fires="low-rank").graph
    assert {id for id in small.weights if id.startswith("shared")} == {
        f"shared.weight.{part}" for part in ("reduce", "core", "expand")
    }
    assert kinds(small) == ["conv2d"] * 3 + ["relu"] + ["conv2d"] * 3 + ["relu"]


def test_weight_that_something_else_reads_stays():
    b = GraphBuilder({"x": TensorType((6, 30))})
    table = b.constant(planted("svd", 40, 30)[:, :, 0, 0], "table")
    x = b.op(LinearOp, b.graph.inputs[0], table, None, location="head")
    graph = b.done(b.op(MatmulOp, x, table))
    small = run_checked(graph, f"low-rank{{method=svd,ranks=fixed:{RANK}}}", fires="low-rank").graph
    assert set(small.weights) == {"table", "table.reduce", "table.expand"}


# Limits and mistakes ----------------------------------------------------------------------------------------------


def test_bisection_takes_single_layers():
    graph = net()
    for limit, chains in ((0, 0), (1, 1), (2, 2)):
        small = run_passes(graph, EXACT, bisect_limit=limit)
        assert kinds(small).count("conv2d") == 3 + 2 * chains
    inputs = seeded_inputs(graph)
    for limit in range(6):  # among them limits at which groups are only partly taken apart
        small = run_passes(graph, f"O3,{EXACT}", bisect_limit=limit)
        assert not deviation(graph.evaluate(*inputs), small.evaluate(*inputs)).exceeds(1e-4)


def test_text_of_the_pass():
    text = "low-rank{method=svd,ranks=energy:0.9,keep=all,multiple=16}"
    assert str(parse_pipeline(text)) == text
    assert str(parse_pipeline("low-rank{method=tucker2,ranks=vbmf,keep=faster}")) == "low-rank"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=tucker", "unknown method 'tucker'; did you mean 'tucker2'?"),
        ("method=cp", "unknown method 'cp'; known: spatial, svd, tucker2"),
        ("keep=fast", "expected one of faster, all, got 'fast'; did you mean 'faster'?"),
        ("multiple=-1", "multiple must be 1 or more, or 0 for the target's vector width, not -1"),
        ("rank=3", "pass 'low-rank' has no option 'rank'; did you mean 'ranks'?"),
    ],
)
def test_mistakes(options: str, message: str):
    with pytest.raises(PipelineError) as error:
        parse_pipeline(f"low-rank{{{options}}}")
    assert message in str(error.value)


def test_needs_weights_and_no_layout():
    graph = net()
    with pytest.raises(PassError, match="the graph's weights are not loaded, so no layer can be factorized"):
        run_passes(parse(str(graph)), EXACT)
    laid_out = run_passes(graph, "fold-batchnorm,layout{block=8}")
    with pytest.raises(PassError, match="layouts are chosen already; run low-rank before layout"):
        run_passes(laid_out, EXACT)
