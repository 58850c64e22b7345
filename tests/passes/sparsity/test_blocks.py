"""Blocks of zeros: ``prune-weights{pattern=block}``, ``skip-zeros``, and what becomes of layers that know of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import tersor
from tersor.ir import Graph, TensorType, parse, structurally_equal
from tersor.ir.blocks import cut_blocks, filled_blocks, join_blocks
from tersor.ir.ops import Conv2dOp, LayerOp, LinearOp, ReluOp, ReshapeOp
from tersor.passes import PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.targets import compile_graph, resolve_target
from tersor.tests.checks import record_of, refusals, rules, run_checked
from tersor.tests.passes.lowrank.planted import Clock
from tersor.tests.random_graphs import GraphBuilder

BLOCKS = "prune-weights{pattern=block:4x16,ratio=0.75,scope=layer}"
NATIVE = resolve_target("x86:native")


def net() -> Graph:
    """A convolution with a window, one without, a strided one, and a linear layer."""
    b = GraphBuilder({"x": TensorType((2, 8, 6, 6))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 32, location="window"))
    x = b.op(ReluOp, b.batch_norm(b.conv(x, 64, 1, location="pointwise")))
    x = b.op(ReluOp, b.conv(x, 48, 1, stride=2, location="strided"))
    x = b.op(ReshapeOp, x, shape=(2, 432))
    return b.done(b.linear(x, 40))


def run(graph: Graph, pipeline: str, **options) -> PassOutcome:
    return PassManager(as_pipeline(pipeline)).run(graph, **options)


def layers(graph: Graph) -> dict[str, LayerOp]:
    return {op.location: op for part in graph.parts for op in part.ops if isinstance(op, LayerOp)}


def test_layers_say_which_blocks_are_left():
    graph = net()
    outcome = run(graph, BLOCKS)
    found = layers(outcome.graph)
    assert {name: op.attrs.blocks for name, op in found.items()} == {
        "window": (),
        "pointwise": (4, 16, 8),
        "strided": (4, 16, 12),
        "fc": (4, 16, 81),
    }
    for name, op in found.items():
        weight = outcome.graph.weights[op.weight.op.attrs.id].flatten(1)
        if name != "window":
            assert int(filled_blocks(weight, 4, 16).sum()) == op.attrs.blocks[2]
    before = {name: op.macs() for name, op in layers(graph).items()}
    assert found["pointwise"].macs() == before["pointwise"] / 4
    assert found["fc"].macs() == pytest.approx(before["fc"] * 81 * 64 / (40 * 432), rel=1e-3)
    assert refusals(outcome) == [
        "prune-weights refused conv2d at 'window': kernels leave out blocks of 1x1 windows without padding, not of 3x3"
    ]


def test_the_weakest_blocks_go():
    graph = net()
    weight = {name: graph.weights[f"{name}.weight"] for name in ("pointwise", "strided")}
    outcome = run(graph, "prune-weights{pattern=block:4x16,ratio=0.5,criterion=l2,skip=[fc,strided]}")
    kept = outcome.graph.weights[layers(outcome.graph)["pointwise"].weight.op.attrs.id]
    sizes = cut_blocks(weight["pointwise"].flatten(1), 4, 16).square().sum((2, 3))
    left = filled_blocks(kept.flatten(1), 4, 16)
    assert sizes[left].min() > sizes[~left].max()
    assert not layers(outcome.graph)["strided"].attrs.blocks


def test_nothing_depends_on_the_attribute_but_the_kernel():
    after = run(net(), BLOCKS).graph
    plain = after.clone()
    for op in layers(plain).values():
        op.attrs = replace(op.attrs, blocks=())
    inputs = seeded_inputs(after)
    assert torch.equal(after.evaluate(*inputs)[0], plain.evaluate(*inputs)[0])
    assert structurally_equal(parse(str(after), after.weights), after)
    module = after.to_torch()
    torch.testing.assert_close(module(*inputs), after.evaluate(*inputs)[0])


@pytest.mark.parametrize("prefix", ["", "O3,"])
def test_running_it_again_changes_nothing(prefix: str):
    once = run(net(), prefix + BLOCKS).graph
    assert {name for name, op in layers(once).items() if op.attrs.blocks} == {"pointwise", "strided", "fc"}
    again = run(once, BLOCKS)
    assert not record_of(again, "prune-weights").changed and structurally_equal(again.graph, once)


def test_a_block_is_as_wide_as_a_vector_of_the_target():
    found = layers(run(net(), "prune-weights{pattern=block:2}", target=resolve_target("x86:avx2")).graph)
    assert found["fc"].attrs.blocks[:2] == (2, 8)
    assert layers(run(net(), "prune-weights{pattern=block}").graph)["fc"].attrs.blocks[:2] == (4, 16)


# The referee ------------------------------------------------------------------------------------------------------


def test_the_referee_keeps_what_is_faster():
    clock = Clock()
    outcome = run(net(), BLOCKS, latency=clock)
    notes = record_of(outcome, "prune-weights").notes
    assert re.match(r"weights that are not zero \d+ -> \d+ of \d+ \(0\.\d+\); before fine-tuning, output 0", notes[0])
    assert notes[1].startswith("pointwise with 8 of 32 blocks 4x16: multiply-adds 147456 -> 36864 (0.250), 0.1475 -> ")
    assert "whole graph" in notes[-1]
    assert len(clock.asked) == 4


def test_layers_that_are_not_faster_keep_their_weights():
    graph = net()
    outcome = run(graph, BLOCKS, latency=Clock(factor=100.0))
    assert structurally_equal(outcome.graph, graph)
    assert not record_of(outcome, "prune-weights").changed
    assert all(" undone, not faster: " in note for note in record_of(outcome, "prune-weights").notes)
    kept = run(graph, BLOCKS.replace("scope", "keep=all,scope"), latency=Clock(factor=100.0))
    assert rules(kept) == ["prune-weights"] * 3


def test_slower_as_a_whole_is_undone():
    class Whole(Clock):
        def compare(self, before: Graph, after: Graph):
            self.factor = 100.0 if len(layers(before)) > 1 else 1.0
            return super().compare(before, after)

    graph = net()
    outcome = run(graph, BLOCKS, latency=Whole())
    assert structurally_equal(outcome.graph, graph)
    assert record_of(outcome, "prune-weights").notes[-1].startswith("whole graph undone, slower: ")


# Zeros that are there already ---------------------------------------------------------------------------------------


def unmarked() -> Graph:
    """A graph with blocks of zeros of which its layers know nothing, as training leaves it."""
    return tersor.from_torch(run(net(), BLOCKS).graph.to_torch(), *seeded_inputs(net()))


def blocks_of(graph: Graph) -> list[tuple[int, ...]]:
    return sorted(op.attrs.blocks for part in graph.parts for op in part.ops if isinstance(op, LayerOp))


def test_zeros_that_are_there_are_found():
    graph = unmarked()
    assert blocks_of(graph) == [()] * 4
    for pipeline in ("skip-zeros", "O3,skip-zeros"):
        outcome = run_checked(graph, pipeline, fires="skip-zeros")
        assert blocks_of(outcome.graph) == [(), (4, 16, 8), (4, 16, 12), (4, 16, 81)]
    assert blocks_of(run(graph, "skip-zeros", latency=Clock(factor=100.0)).graph) == [()] * 4


def test_layers_with_few_zeros_are_left_alone():
    outcome = run(run(net(), "prune-weights{ratio=0.6,scope=layer}").graph, "skip-zeros")
    assert not record_of(outcome, "skip-zeros").changed
    assert any(
        re.search(r"refused linear at 'fc': 1\.\d+ of its multiply-adds would be left", one)
        for one in refusals(outcome)
    )
    assert record_of(outcome, "skip-zeros").notes == (
        "no layer has blocks of zeros that it does not leave out already",
    )


def test_columns_of_zeros_are_blocks_of_one_input():
    b = GraphBuilder({"x": TensorType((3, 12))})
    weight = torch.randn(32, 12, generator=b.generator)
    weight[:, ::2] = 0
    graph = b.done(b.op(LinearOp, b.graph.inputs[0], b.constant(weight, "w"), location="fc"))
    assert layers(run_checked(graph, "skip-zeros", fires="skip-zeros").graph)["fc"].attrs.blocks == (1, 16, 12)


# Compiled ---------------------------------------------------------------------------------------------------------


def templates(graph: Graph) -> list[str]:
    return [one.template for one in compile_graph(graph, NATIVE).info.kernels if one.template != "relayout"]


@pytest.mark.parametrize("pipeline", [f"{BLOCKS},O3", f"O3,{BLOCKS}"])
def test_compiled_code_leaves_blocks_out(pipeline: str, tmp_path):
    graph = run(net(), f"{pipeline},fold-batchnorm,layout", target=NATIVE).graph
    executable = compile_graph(graph, NATIVE)
    found = [one.template for one in executable.info.kernels]
    assert found.count("sparse_conv2d") == 2 and found.count("sparse_linear") == 1
    inputs = seeded_inputs(graph)
    assert not deviation(graph.evaluate(*inputs), (executable(*inputs),)).exceeds(1e-5)
    loaded = tersor.load(executable.save(tmp_path / "model.tersor"))
    assert torch.equal(loaded(*inputs), executable(*inputs))
    assert structurally_equal(loaded.graph, graph)


def linear(blocks: tuple[int, ...], share: float = 0.2, dtype=torch.float32, outputs: int = 48) -> Graph:
    b = GraphBuilder({"x": TensorType((5, 24), tersor.ir.DType.from_torch(dtype))})
    cut = cut_blocks(torch.randn(outputs, 24, generator=b.generator), 4, 16)
    cut = cut * (torch.rand(cut.shape[:2], generator=b.generator) < share)[:, :, None, None]
    weight = b.constant(join_blocks(cut, (outputs, 24)).to(dtype), "w")
    return b.done(b.op(LinearOp, b.graph.inputs[0], weight, location="fc", blocks=blocks))


@pytest.mark.parametrize(
    ("graph", "template"),
    [
        (linear((4, 16, 18)), "sparse_linear"),
        (linear((4, 16, 2), share=1.0), "matmul"),  # which is not true of the weight
        (linear((4, 24, 18)), "matmul"),  # no whole vectors
        (linear((5, 16, 18)), "matmul"),
        (linear((4, 16, 18), dtype=torch.bfloat16), "matmul"),
    ],
)
def test_what_no_kernel_leaves_out_is_multiplied(graph: Graph, template: str):
    executable = compile_graph(graph, NATIVE)
    assert [one.template.partition("_bf16")[0] for one in executable.info.kernels] == [template]
    inputs = seeded_inputs(graph)
    expected = graph.evaluate(*inputs)[0].float()
    torch.testing.assert_close(executable(*inputs).float(), expected, rtol=2e-2, atol=2e-2)


def test_integers_and_16_bits_count_all_multiply_adds():
    graph = linear((4, 16, 5))
    half = run(graph, "to-bf16", target=NATIVE).graph
    assert graph.cost().macs == 5 * 4 * 16 * 5
    assert half.cost().macs == 5 * 48 * 24


def test_passes_that_change_weights_keep_the_numbers_right():
    graph = run(net(), f"{BLOCKS},prune-channels{{macs=0.8,multiple=1}},O3,layout", target=NATIVE).graph
    inputs = seeded_inputs(graph)
    assert not deviation(graph.evaluate(*inputs), (compile_graph(graph, NATIVE)(*inputs),)).exceeds(1e-5)


def test_the_whole_way_with_measured_times():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)).eval()
    x = torch.randn(64, 512)
    exe = tersor.compile(
        model, x, pipeline="prune-weights{pattern=block:4,ratio=0.9,scope=layer},O3", target="x86:native"
    )
    (record,) = (one for one in exe.report.records if one.name == "prune-weights")
    kept = [verdict.stays for verdict in record.verdicts if not verdict.is_whole]
    assert len(kept) == 2  # whichever way it went on this machine
    assert sum(one.template == "sparse_linear" for one in exe.info.kernels) in (0, sum(kept))


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune-weights{pattern=block:0x16}", "say inputs and outputs of a block, such as block:4x16 or block:4"),
        ("prune-weights{pattern=block:4x}", "not '4x'"),
        ("prune-weights{pattern=block:a}", "not 'a'"),
        ("skip-zeros{most=1}", "most is a share of multiply-adds, above 0 and below 1, not 1"),
    ],
)
def test_mistakes_are_one_line(text: str, message: str):
    with pytest.raises(PipelineError, match=re.escape(message)):
        parse_pipeline(text)


@pytest.mark.parametrize("blocks", [(1, 16), (0, 16, 3), (1, 16, -1)])
def test_attributes_must_say_something(blocks: tuple[int, ...]):
    with pytest.raises(ValueError, match="blocks are inputs and outputs of one, and how many are not zero"):
        LinearOp.attrs_type(blocks=blocks)
    with pytest.raises(ValueError, match="blocks are inputs and outputs of one"):
        Conv2dOp.attrs_type(blocks=blocks)


def test_no_layer_fits_the_blocks():
    b = GraphBuilder({"x": TensorType((2, 6))})
    graph = b.done(b.linear(b.graph.inputs[0], 40))
    with pytest.raises(
        tersor.TersorError, match=r"linear at 'fc' gets none, since blocks of 4 inputs do not divide its 6"
    ):
        run(graph, BLOCKS)
