"""``prune-weights``: which weights become zero, how many of each layer, what is refused, and what stays as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import tersor
from tersor.ir import Graph, TensorType, parse, structurally_equal
from tersor.ir.ops import EmbeddingOp, FusedOp, LinearOp, ReluOp, ReshapeOp
from tersor.passes import PassError, PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline
from tersor.passes.numeric import seeded_inputs
from tersor.passes.sensitivity import LossCurve, LossPoint, ScannedAxis, SensitivityScan
from tersor.passes.sparsity.patterns import parse_pattern
from tersor.tests.checks import record_of, refusals, rules
from tersor.tests.random_graphs import GraphBuilder

RATIO = "prune-weights{ratio=0.75}"


def net() -> Graph:
    """Two convolutions with a batch norm and an activation between, and a linear layer of small weights."""
    b = GraphBuilder({"x": TensorType((2, 6, 8, 8))})
    x = b.op(ReluOp, b.batch_norm(b.conv(b.graph.inputs[0], 16, location="first")))
    x = b.op(ReluOp, b.conv(x, 8, 1, location="second"))
    x = b.op(ReshapeOp, x, shape=(2, 512))
    weight = b.constant(torch.randn(10, 512, generator=b.generator) * 0.01, "head.weight")
    return b.done(b.op(LinearOp, x, weight, b.weight(10, hint="head.bias"), location="head"))


def run(graph: Graph, pipeline: str, **options: Any) -> PassOutcome:
    return PassManager(as_pipeline(pipeline)).run(graph, **options)


def weights(graph: Graph) -> dict[str, torch.Tensor]:
    """The weights of layers, by the names of the model."""
    found = {}
    for part in graph.parts:
        for op in part.ops:
            if op.name == "weight" and graph.weights[op.attrs.id].ndim > 1:
                found[tersor.ir.name_of(op.attrs.id)] = graph.weights[op.attrs.id]
    return found


def shares(graph: Graph) -> dict[str, float]:
    """Of each weight, the share that is zero."""
    return {name: float((tensor == 0).double().mean()) for name, tensor in weights(graph).items()}


# Which weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["O0", "O2", "O3"])
def test_the_graph_is_that_of_the_zeroed_weights(prefix: str):
    before = run(net(), prefix).graph
    after = run(before, RATIO).graph
    found = weights(after)
    zeroed = before.clone()
    numbers = dict(before.weights)
    for id, tensor in before.weights.items():
        name = tersor.ir.name_of(id)
        if name in found:
            numbers[id] = torch.where(found[name] == 0, 0.0, tensor)
            assert torch.equal(found[name], numbers[id]) and not found[name][found[name] == 0].signbit().any()
    zeroed.weights = tersor.ir.WeightStore(numbers)
    inputs = seeded_inputs(before)
    assert torch.equal(after.evaluate(*inputs)[0], zeroed.evaluate(*inputs)[0])
    assert sum(shares(after)[name] * one.numel() for name, one in found.items()) == 0.75 * 6112
    assert any(isinstance(op, FusedOp) for op in after.ops) == (prefix == "O3")
    assert structurally_equal(parse(str(after), after.weights), after)


@pytest.mark.parametrize("prefix", ["", "O3,"])
@pytest.mark.parametrize("options", ["ratio=0.75", "ratio=0.6,scope=layer", "pattern=nm:2:4", "criterion=random"])
def test_running_it_again_changes_nothing(prefix: str, options: str):
    once = run(net(), f"{prefix}prune-weights{{{options}}}").graph
    again = run(once, f"prune-weights{{{options}}}")
    assert not record_of(again, "prune-weights").changed
    assert structurally_equal(again.graph, once)
    assert record_of(again, "prune-weights").notes == ("as many weights are zero already",)


def test_the_smallest_weights_of_the_whole_network_go():
    graph = net()
    before, after = weights(graph), weights(run(graph, "prune-weights{ratio=0.4}").graph)
    gone = torch.cat([before[name][after[name] == 0].abs() for name in before])
    left = torch.cat([before[name][after[name] != 0].abs() for name in before if name != "head.weight"])
    assert len(gone) == int(0.4 * sum(one.numel() for one in before.values()))
    assert gone.max() <= left.min()
    assert shares(run(graph, "prune-weights{ratio=0.4}").graph)["head.weight"] > 0.45  # whose weights are small


def test_every_layer_loses_the_same_share():
    found = shares(run(net(), "prune-weights{ratio=0.4,scope=layer}").graph)
    assert found == pytest.approx(dict.fromkeys(found, 0.4), abs=0.01)


def test_the_floor_holds():
    found = shares(run(net(), "prune-weights{ratio=0.7,floor=0.2}").graph)
    assert found["head.weight"] == pytest.approx(0.8, abs=1e-3)


def test_lamp_compares_layers_of_any_scale():
    found = shares(run(net(), "prune-weights{ratio=0.5,criterion=lamp}").graph)
    assert found["head.weight"] < 0.6


def test_names_have_shares_of_their_own():
    found = shares(run(net(), "prune-weights{ratio={first: 0.25, head: 0.9}}").graph)
    assert found == pytest.approx({"first.weight": 0.25, "second.weight": 0.0, "head.weight": 0.9}, abs=1e-3)
    found = shares(run(net(), 'prune-weights{ratio={second: 0.5, "*": 0.25}}').graph)  # a full name decides
    assert found == pytest.approx({"first.weight": 0.25, "second.weight": 0.5, "head.weight": 0.25}, abs=1e-3)
    found = shares(run(net(), "prune-weights{ratio=0.5,scope=layer,skip=[head]}").graph)
    assert found == pytest.approx({"first.weight": 0.5, "second.weight": 0.5, "head.weight": 0.0}, abs=1e-3)


def test_two_of_each_four_inputs_stay():
    graph = net()
    outcome = run(graph, "prune-weights{pattern=nm:2:4,skip=[head]}")
    before, after = weights(graph), weights(outcome.graph)
    kept = after["second.weight"][:, :, 0, 0].reshape(8, 4, 4)
    assert ((kept != 0).sum(2) == 2).all()
    largest = before["second.weight"][:, :, 0, 0].reshape(8, 4, 4).abs().topk(2, 2).values.sort(2).values
    assert torch.equal(kept.abs().sort(2).values[:, :, 2:], largest)
    six = (after["first.weight"] != 0).movedim(1, -1)  # inputs: the last two of six keep both
    assert (six[..., :4].sum(-1) == 2).all() and six[..., 4:].all()
    assert torch.equal(after["head.weight"], before["head.weight"])


def test_obd_asks_the_data():
    graph = net()
    batches = [seeded_inputs(graph, seed) for seed in range(3)]
    graph_of = {
        name: run(graph, f"prune-weights{{criterion={name}}}", calibration=batches).graph for name in ("obd", "l1")
    }
    expected = graph.evaluate(*batches[0])[0]
    errors = {name: float((one.evaluate(*batches[0])[0] - expected).norm()) for name, one in graph_of.items()}
    assert errors["obd"] < errors["l1"]
    with pytest.raises(tersor.TersorError, match="needs calibration data"):
        run(graph, "prune-weights{criterion=obd}")


def test_users_score_weights_themselves():
    outcome = run(net(), f"prune-weights{{ratio=0.5,criterion={__name__}:by_place}}")
    first = weights(outcome.graph)["head.weight"].flatten()
    assert not first[: len(first) // 2 - 300].any()
    with pytest.raises(PassError, match=r"returns a tensor \[1\] for the weight \[16, 6, 3, 3\] of first"):
        run(net(), f"prune-weights{{criterion={__name__}:of_wrong_shape}}")


def by_place(found, scoring):
    return [
        torch.arange(one.numbers.numel(), dtype=torch.float64).reshape(one.numbers.shape) / one.numbers.numel()
        for one in found
    ]


def of_wrong_shape(found, scoring):
    return [torch.ones(1) for _ in found]


# By sensitivity ---------------------------------------------------------------------------------------------------


def scan_file(tmp_path, **steepness: float) -> str:
    """A scan by which a layer's loss rises by ``steepness`` times the share of zeros."""
    curves = []
    for name, tensor in weights(net()).items():
        layer = name.removesuffix(".weight")
        points = tuple(LossPoint(f"{s}", s, "", s * steepness[layer]) for s in (0.25, 0.5, 0.75))
        curves.append(LossCurve(layer, "l1", (layer,), tuple(tensor.shape), points))
    scan = SensitivityScan("net", (ScannedAxis("zeros", "share of zeros", tuple(curves)),), "data", 1)
    return str(scan.save(tmp_path / "scan.json"))


def test_layers_lose_what_costs_the_same(tmp_path):
    path = scan_file(tmp_path, first=2.0, second=1.0, head=1.0)
    found = shares(run(net(), f'prune-weights{{ratio=0.5,sensitivity="{path}"}}').graph)
    assert found["second.weight"] == pytest.approx(found["head.weight"], abs=0.01)
    assert found["first.weight"] == pytest.approx(found["head.weight"] / 2, abs=0.01)
    total = sum(one.numel() * found[name] for name, one in weights(net()).items())
    assert total / sum(one.numel() for one in weights(net()).values()) == pytest.approx(0.5, abs=0.01)
    with pytest.raises(PassError, match=r"0\.750 of the weights become zero .* ask for a lower ratio"):
        run(net(), f'prune-weights{{ratio=0.9,sensitivity="{path}"}}')


def test_a_scan_of_something_else_is_refused(tmp_path):
    other = SensitivityScan("other", (ScannedAxis("zeros", "", ()),), "data", 1).save(tmp_path / "other.json")
    with pytest.raises(PassError, match="has no curves for zeros"):
        run(net(), f'prune-weights{{sensitivity="{other}"}}')


# Refusals, mistakes, reports --------------------------------------------------------------------------------------


def test_what_cannot_get_zeros_is_refused():
    b = GraphBuilder({"x": TensorType((4, 8)), "w": TensorType((8, 8))})
    x = b.op(LinearOp, b.graph.inputs[0], b.graph.inputs[1], location="computed")
    x = b.op(LinearOp, x, b.constant(torch.full((8, 8), torch.inf), "i.weight"), location="infinite")
    x = b.op(LinearOp, x, b.weight(2, 8, hint="n.weight"), location="narrow")
    x = b.op(LinearOp, x, b.weight(8, 2, hint="l.weight"), location="last")
    outcome = run(b.done(x), "prune-weights{pattern=nm:2:4}")
    assert refusals(outcome) == [
        "prune-weights refused linear at 'computed': its weight is no constant",
        "prune-weights refused linear at 'infinite': its weight has numbers that are not finite",
        "prune-weights refused linear at 'last': it has 2 inputs, no more than 2",
    ]
    assert rules(outcome) == ["prune-weights"]


def test_nothing_to_prune():
    b = GraphBuilder({"x": TensorType((4, 8))})
    with pytest.raises(PassError, match="nothing to prune: the graph has no convolution or linear layer"):
        run(b.done(b.op(ReluOp, b.graph.inputs[0])), "prune-weights")
    b = GraphBuilder({"x": TensorType((4, 8)), "w": TensorType((8, 8))})
    only = b.done(b.op(LinearOp, *b.graph.inputs, location="fc"))
    with pytest.raises(PassError, match=r"no layer can get zeros; linear at 'fc' gets none, since its weight is no"):
        run(only, "prune-weights")
    with pytest.raises(PassError, match="run prune-weights before layout"):
        run(run(net(), "O3,layout", target=tersor.targets.resolve_target("x86:znver4")).graph, "prune-weights")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0", "ratio is the share of weights that becomes zero, above 0 and at most 0.99"),
        ("ratio=1.5", "above 0 and at most 0.99, since floor=0.01 of each layer stays, not 1.5"),
        ("ratio=0.95,floor=0.1", "at most 0.9, since floor=0.1"),
        ("ratio={a: 1}", "from 0 to below 1, not 1"),
        ("floor=1", "floor is a fraction of weights, from 0 to below 1, not 1"),
        ("pattern=nm:4:2", "say how many of how many weights stay, such as nm:2:4, not '4:2'"),
        ("pattern=nm:2", "such as nm:2:4, not '2'"),
        ("pattern=nm", "needs a number"),
        ("pattern=nn:2:4", "unknown pattern 'nn:2:4'; known: block:SHAPE, nm:COUNTS, single"),
        ("pattern=nm:2:4,ratio=0.5", "pattern=nm:2:4 says itself how many weights go"),
        ("criterion=l3", "unknown criterion 'l3'"),
        ("sensitivity=none.json", "none.json: No such file"),
        ("loss=nowhere:loss", "nowhere"),
    ],
)
def test_mistakes_are_one_line(options: str, message: str):
    with pytest.raises((PipelineError, tersor.TersorError), match=re.escape(message)) as caught:
        parse_pipeline(f"prune-weights{{{options}}}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio={secnd: 0.5}", "ratio: 'secnd' matches no layer; did you mean 'second'"),
        ("skip=[qq*]", "skip: 'qq*' matches no layer; layers have names such as first, second, head"),
        ('ratio={"s*": 0.5, "*d": 0.3}', "ratio 's*' and ratio '*d' both match second, with different shares"),
        ("ratio={first: 0.95},floor=0.1", "ratio=0.95 leaves less than floor=0.1 of the weights of first"),
    ],
)
def test_names_that_do_not_fit(options: str, message: str):
    with pytest.raises(PassError, match=re.escape(message)):
        run(net(), f"prune-weights{{{options}}}")


def test_the_report_says_what_stays():
    outcome = run(net(), "prune-weights{ratio=0.5,scope=layer}")
    whole, first, _, head = record_of(outcome, "prune-weights").notes
    assert whole.startswith(
        "weights that are not zero 6112 -> 3056 of 6112 (0.500); before fine-tuning, output 0 differs"
    )
    assert first == "first: 432 of 864 weights are not zero (0.500)"
    assert head == "head: 2560 of 5120 weights are not zero (0.500)"


def test_layers_that_share_a_weight_share_zeros_and_other_readers_keep_it():
    b = GraphBuilder({"i": TensorType((4,), tersor.ir.DType.I64)})
    table = b.weight(12, 8, hint="table.weight")
    x = b.op(EmbeddingOp, table, b.graph.inputs[0])
    out = [b.op(LinearOp, x, table, location=name) for name in ("one", "two")]
    outcome = run(b.done(*out), "prune-weights{ratio=0.5}")
    one, two = (op for op in outcome.graph.ops if isinstance(op, LinearOp))
    assert one.weight is two.weight
    assert float((outcome.graph.weights[one.weight.op.attrs.id] == 0).double().mean()) == 0.5
    (lookup,) = (op for op in outcome.graph.ops if isinstance(op, EmbeddingOp))
    assert lookup.table.op.attrs.id == "table.weight"
    assert rules(outcome) == ["prune-weights"]


def test_a_bisection_can_leave_it_out():
    outcome = PassManager(as_pipeline(RATIO), bisect_limit=2).run(net())
    assert sum(share > 0 for share in shares(outcome.graph).values()) == 2


# Fine-tuning ------------------------------------------------------------------------------------------------------


def test_zeros_stay_when_they_are_told_to():
    module = run(net(), RATIO).graph.to_torch().train()
    zeros = {name: one.detach() == 0 for name, one in module.named_parameters() if one.ndim > 1}
    assert tersor.keep_zeros(module) == len(zeros)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    before = {name: one.detach().clone() for name, one in module.named_parameters()}
    for seed in range(3):
        optimizer.zero_grad()
        module(*seeded_inputs(net(), seed)).square().sum().backward()
        optimizer.step()
    after = dict(module.named_parameters())
    assert all(torch.equal(after[name] == 0, mask) for name, mask in zeros.items())
    assert all(not torch.equal(after[name], before[name]) for name in zeros)


def test_pattern_names():
    assert parse_pattern("nm:4:8").many == 8
    assert "nm:COUNTS" in tersor.passes.sparsity.patterns.PATTERNS.spellings()
