"""What ``prune-channels`` is asked for: parameters, ratios of layers, scopes, schedules, rounds; and every refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from tersor.ir import Graph, TensorType, TersorError, name_of, structurally_equal
from tersor.ir.ops import AddOp, Conv2dOp, ReluOp, WeightOp
from tersor.passes import PassManager, PipelineError, as_pipeline, parse_pipeline, print_pass, run_passes
from tersor.passes.instruments import CheckEach, VerifyEach
from tersor.passes.numeric import seeded_inputs
from tersor.passes.pruning import ChannelGroup, Scoring
from tersor.passes.pruning.prune import PruneChannels
from tersor.passes.pruning.select import PruningSchedule
from tersor.tests.random_graphs import GraphBuilder


def chain(*widths: int) -> Graph:
    """Convolutions one after another, named c0, c1, …; then ``last``."""
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    x = b.graph.inputs[0]
    for index, width in enumerate(widths):
        x = b.op(ReluOp, b.batch_norm(b.conv(x, width, location=f"c{index}"), f"n{index}"))
    return b.done(b.conv(x, 5, 1, location="last"))


def residual() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 16, location="stem"))
    y = b.conv(b.op(ReluOp, b.conv(x, 20, location="wide")), 16, location="narrow")
    return b.done(b.conv(b.op(ReluOp, b.op(AddOp, x, y)), 5, 1, location="last"))


def counts(graph: Graph) -> dict[str, int]:
    return {op.location: op.result.shape[1] for op in graph.ops if isinstance(op, Conv2dOp)}


def parameters(graph: Graph) -> int:
    return sum(graph.weights[id].numel() for id in {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)})


def prune(graph: Graph, options: str) -> Graph:
    manager = PassManager(as_pipeline(f"prune-channels{{{options}}}"), (VerifyEach(), CheckEach()))
    return manager.run(graph).graph


# Budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("left", [0.3, 0.7])
def test_parameters(scope: str, left: float):
    graph = chain(16, 24, 32)
    small = prune(graph, f"params={left},scope={scope}")
    assert left - 0.06 < parameters(small) / parameters(graph) <= left


def test_equal_scores_do_not_go_all_at_once():
    graph = chain(16, 24, 32)
    small = prune(graph, f"macs=0.5,criterion={here('all_alike')}")
    assert 0.4 < small.cost().macs / graph.cost().macs <= 0.5
    shares = [counts(small)[f"c{index}"] / width for index, width in enumerate((16, 24, 32))]
    assert max(shares) - min(shares) < 0.07


def all_alike(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
    return [np.ones(group.size) for group in groups]


def test_two_budgets_are_both_met():
    graph = chain(16, 24, 32)
    small = prune(graph, "params=0.5,macs=0.6")
    assert parameters(small) <= 0.5 * parameters(graph) and small.cost().macs <= 0.6 * graph.cost().macs
    tight = prune(graph, "params=0.9,macs=0.4")
    assert structurally_equal(tight, prune(graph, "macs=0.4"))


def test_ratio_is_the_share_of_channels_that_goes():
    graph = chain(16, 24, 32)
    assert counts(prune(graph, "ratio=0.25,scope=layer")) == {"c0": 12, "c1": 18, "c2": 24, "last": 5}
    whole = counts(prune(graph, "ratio=0.25"))
    assert sum(whole.values()) - 5 == 54


def test_ratios_of_layers():
    graph = chain(16, 24, 32)
    assert counts(prune(graph, "ratio={c0:0.25}")) == {"c0": 12, "c1": 24, "c2": 32, "last": 5}
    assert counts(prune(graph, 'ratio={ "c*": 0.5, c1: 0.25 }')) == {"c0": 8, "c1": 18, "c2": 16, "last": 5}
    rest = prune(graph, 'ratio={c0: 0.25, "last*": 0},macs=0.5')
    assert counts(rest)["c0"] == 12
    assert rest.cost().macs <= 0.5 * graph.cost().macs


def test_skipped_layers_keep_all_channels():
    graph = chain(16, 24, 32)
    small = prune(graph, "macs=0.6,skip=[c1,la*]")
    assert counts(small)["c1"] == 24 and counts(small)["c0"] < 16
    assert counts(prune(residual(), "macs=0.7,skip=[narrow]"))["stem"] == 16


def test_layer_scope_takes_the_same_share_everywhere():
    graph = chain(16, 24, 32)
    graph.weights["c0.weight"][:8] *= 1e-3
    found = counts(prune(graph, "macs=0.5,scope=layer"))
    shares = [found[f"c{index}"] / width for index, width in enumerate((16, 24, 32))]
    assert max(shares) - min(shares) < 0.07
    assert counts(prune(graph, "macs=0.5"))["c0"] < found["c0"]


def test_triangle_takes_more_from_later_layers():
    graph = chain(32, 32, 32, 32)
    found = counts(prune(graph, "macs=0.5,scope=layer,schedule=triangle"))
    assert found["c0"] > found["c1"] > found["c2"] > found["c3"]
    assert counts(prune(graph, "ratio=0.4,scope=layer,schedule=triangle")) == {
        f"c{index}": 32 - int(0.4 * (2 * index + 1) / 4 * 32) for index in range(4)
    } | {"last": 5}
    assert math.isclose(PruningSchedule.TRIANGLE.weights(7).mean(), 1)


# Rounds -------------------------------------------------------------------------------------------------------

SEEN: list[tuple[int, bool]] = []


def remember(module: nn.Module) -> None:
    """Not training, but a change that can be recognised."""
    SEEN.append((sum(parameter.numel() for parameter in module.parameters()), module.training))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1.0  # type: ignore[misc]


def break_down(module: nn.Module) -> None:
    raise RuntimeError("out of\nluck")


def diverge(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).fill_(math.nan)


def here(name: str) -> str:
    return f"{__name__}:{name}"


def test_rounds_without_training_remove_more_and_more():
    graph = chain(16, 24, 32)
    small = prune(graph, "macs=0.3,rounds=4")
    assert 0.2 < small.cost().macs / graph.cost().macs <= 0.3
    for id, tensor in small.weights.items():  # what is left are the numbers from before
        if id.endswith("..pruned") and tensor.ndim == 1:
            assert all(number in graph.weights[name_of(id)] for number in tensor)


def test_training_between_rounds():
    graph = chain(16, 24, 32)
    SEEN.clear()
    outcome = PassManager(as_pipeline(f"prune-channels{{macs=0.3,rounds=3,train={here('remember')}}}")).run(graph)
    assert [training for _, training in SEEN] == [False, False]
    assert parameters(graph) > SEEN[0][0] > SEEN[1][0]
    small = outcome.graph
    assert small.cost().macs <= 0.3 * graph.cost().macs
    gammas = small.weights["n1.gamma..pruned"]
    assert all(any(torch.isclose(one, other + 2) for other in graph.weights["n1.gamma"]) for one in gammas)
    torch.testing.assert_close(small.weights["last.bias..refit"], graph.weights["last.bias"] + 2)
    assert f"3 rounds, with training by {here('remember')} in between" in outcome.report.records[0].notes
    assert not any(torch.equal(graph.weights[id], graph.weights[id] + 2) for id in graph.weights)


def test_rounds_keep_channels_that_are_gone_gone():
    graph = residual()
    first = prune(graph, "macs=0.7,criterion=random,seed=1")
    both = prune(graph, "macs=0.49,criterion=random,seed=1,rounds=2")
    for id in ("stem.weight..pruned", "wide.bias..pruned"):
        rows = [tuple(row.flatten().tolist()[:1]) for row in both.weights[id]]
        before = [tuple(row.flatten().tolist()[:1]) for row in first.weights[id]]
        assert set(rows) <= set(before)


def test_rounds_with_reconstruction():
    graph = residual()
    data = [seeded_inputs(graph, seed) for seed in range(8)]
    small = run_passes(graph, "prune-channels{macs=0.5,rounds=2,reconstruct=lasso}", calibration=data)
    assert small.cost().macs <= 0.5 * graph.cost().macs


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("params=1", "params is the ratio of parameters to leave, above 0 and below 1, not 1"),
        ("ratio=1", "ratio is the share of channels that goes, from 0 to below 1, not 1"),
        ("ratio={c0: 1.5}", "ratio is the share of channels that goes, from 0 to below 1, not 1.5"),
        ("ratio=0", "nothing would be pruned"),
        ("ratio={c0: x}", "expected a number, got 'x'"),
        ("ratio={c0: 0.5, c0: 0.2}", "'c0' is given twice"),
        ("ratio={c0 0.5}", "expected ':', found '0'"),
        ("ratio=[c0]", "expected a number, got a list"),
        ("rounds=0", "rounds is a number of steps, 1 or more, not 0"),
        (f"train={here('remember')}", "train is for what happens between rounds; ask for rounds=2 or more"),
        ("schedule=triangle", "schedule=triangle needs scope=layer"),
        ("scope=local", "expected one of global, layer, got 'local'"),
    ],
)
def test_bad_options(options: str, message: str):
    with pytest.raises(PipelineError, match=re.escape(message)):
        parse_pipeline(f"prune-channels{{{options}}}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("skip=[c9]", "skip: 'c9' matches no layer"),
        ("skip=[conv*]", "skip: 'conv*' matches no layer; layers have names such as c0, c1, c2"),
        ("ratio={c00: 0.5}", "ratio: 'c00' matches no layer; did you mean 'c0'?"),
        ("ratio={last: 0.5}", "ratio: last cannot lose channels, since they reach output 0 of the graph"),
        (
            'ratio={"c*": 0.5, "*0": 0.2}',
            "ratio 'c*' and ratio '*0' both match c0, with shares of 0.5 and 0.2; keep one",
        ),
        ("ratio={c0: 0.5},skip=[c0]", "ratio 'c0' and skip 'c0' both match c0, with shares of 0.5 and 0"),
        ("ratio={c0: 0.95}", "ratio=0.95 leaves less than floor=0.1 of the channels of c0; ask for a lower floor"),
        ("params=0.001", "params=0.001 would empty a layer: 0.0"),
        ("ratio=0.95", "ratio=0.95 would empty a layer: 0.1"),
        ("macs=0.1,skip=[c1]", "macs=0.1 would empty a layer"),
        ('macs=0.5,skip=["c*"]', "nothing to prune: no group may shrink"),
        (f"rounds=2,train={here('break_down')}", "train: break_down raised RuntimeError: out of luck"),
        (f"rounds=2,train={here('diverge')}", "train: diverge left numbers in 'c0.weight' that are not finite"),
        (f"rounds=2,train={here('SEEN')}", "is a list; name a function that trains a module"),
    ],
)
def test_what_cannot_be_done_is_one_line(options: str, message: str):
    with pytest.raises(TersorError, match=re.escape(message)) as caught:
        run_passes(chain(16, 24, 32), f"prune-channels{{{options}}}")
    assert "\n" not in str(caught.value)


def test_layers_that_go_together_cannot_have_different_ratios():
    with pytest.raises(
        TersorError, match=r"stem and narrow lose their channels together, but shares of 0\.5 and 0\.25"
    ):
        run_passes(residual(), "prune-channels{ratio={stem: 0.5, narrow: 0.25}}")


def test_options_print_and_read_back():
    one = PruneChannels(ratio={"features.3": 0.25, "a:b c*": 0.0}, skip=("x",))
    text = print_pass(one)
    assert text == 'prune-channels{ratio={features.3:0.25,"a:b c*":0.0},skip=[x]}'
    assert parse_pipeline(text).passes == (one,)
    assert np.isclose(parse_pipeline("prune-channels{ratio=0.3}").passes[0].ratio, 0.3)  # type: ignore[attr-defined]
