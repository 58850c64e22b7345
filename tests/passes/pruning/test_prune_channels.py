"""``prune-channels``: what it chooses, what it leaves behind, and what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor.frontend import to_torch
from tersor.ir import Graph, TensorType, TersorError, parse, structurally_equal
from tersor.ir.ops import AddOp, Conv2dOp, ReluOp, WeightOp
from tersor.passes import PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.instruments import CheckEach, VerifyEach
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.passes.pruning import ChannelGroup, Scoring, find_channels, register_criterion
from tersor.passes.pruning.criteria import registry
from tersor.passes.pruning.criteria.registry import CRITERIA
from tersor.passes.pruning.prune import PruneChannels
from tersor.targets import resolve_target
from tersor.tests.checks import kinds, refusals, rules
from tersor.tests.passes.pruning.zeroing import pruned, select_macs, zeroed
from tersor.tests.random_graphs import GraphBuilder


def residual_net(width: int = 16) -> Graph:
    """Stem, a residual block with a wider branch, and a classifier; batch norms unfolded."""
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    x = b.op(ReluOp, b.batch_norm(b.conv(b.graph.inputs[0], width, location="stem"), "stem_bn"))
    y = b.op(ReluOp, b.batch_norm(b.conv(x, 2 * width, location="wide"), "wide_bn"))
    y = b.batch_norm(b.conv(y, width, location="narrow"), "narrow_bn")
    return b.done(b.conv(b.op(ReluOp, b.op(AddOp, x, y)), 5, 1, location="classify"))


def run(graph: Graph, pipeline: str, **options: Any) -> PassOutcome:
    manager = PassManager(as_pipeline(pipeline), (VerifyEach(), CheckEach()))
    return manager.run(graph, **options)


def batches(graph: Graph, count: int = 8) -> list[tuple[torch.Tensor, ...]]:
    return [seeded_inputs(graph, seed) for seed in range(count)]


def channels_of(graph: Graph) -> dict[str, int]:
    return {op.location: op.result.shape[1] for op in graph.ops if isinstance(op, Conv2dOp)}


@pytest.mark.parametrize("criterion", CRITERIA.names())
@pytest.mark.parametrize("macs", [0.25, 0.5, 0.9])
def test_reaches_the_ratio(criterion: str, macs: float):
    graph = residual_net()
    before = str(graph)
    small = run(graph, f"prune-channels{{macs={macs},criterion={criterion}}}", calibration=batches(graph)).graph
    assert macs - 0.1 < small.cost().macs / graph.cost().macs <= macs
    assert str(graph) == before
    assert structurally_equal(parse(str(small), small.weights), small)
    assert kinds(small) == kinds(graph)


def test_is_the_network_with_zeros():
    graph = residual_net()
    channels = find_channels(graph)
    scores = CRITERIA.find("l1")(channels.groups, Scoring(graph, None, 0))
    masks = select_macs(channels, scores, 0.5)
    small = run(graph, "prune-channels").graph
    assert structurally_equal(small, pruned(graph, channels, masks))
    inputs = seeded_inputs(graph)
    zeros = zeroed(graph, channels, masks).evaluate(*inputs)
    assert not deviation(zeros, small.evaluate(*inputs)).exceeds(1e-5)


def test_weights_are_fresh_and_old_ones_are_gone():
    small = run(residual_net(), "prune-channels").graph
    ids = {op.attrs.id for op in small.ops if isinstance(op, WeightOp)}
    assert ids == set(small.weights)
    assert {"stem.weight..pruned", "wide_bn.mean..pruned", "classify.bias"} <= ids


def test_report():
    outcome = run(residual_net(), "prune-channels{macs=0.4}")
    whole, parameters, *groups = outcome.report.records[0].notes
    macs, error = whole.split("; ")
    assert re.fullmatch(r"whole graph: multiply-adds 622592 -> \d+ \(0\.3\d+\), not measured", macs)
    assert re.fullmatch(r"parameters \d+ -> \d+ \(0\.\d+\)", parameters)
    assert [re.sub(r"^\d+", "n", line) for line in groups] == [
        "n of 16 channels: stem, narrow",
        "n of 32 channels: wide",
    ]
    assert error.startswith("before fine-tuning, output 0 differs by")
    assert rules(outcome) == ["prune-channels"] * 2
    assert refusals(outcome) == ["prune-channels refused conv2d at 'classify': they reach output 0 of the graph"]


def test_least_important_channels_go_first():
    graph = residual_net()
    for id in ("wide.weight", "wide_bn.gamma"):
        graph.weights[id][4:20] *= 1e-3
    graph.weights["narrow.weight"][:, 4:20] *= 1e-3
    kept = [*range(4), *range(20, 32)]
    for criterion in ("l1", "bn-gamma"):
        small = run_passes(graph, f"prune-channels{{macs=0.53,criterion={criterion}}}")
        assert channels_of(small) == {"stem": 16, "wide": 16, "narrow": 16, "classify": 5}
        assert torch.equal(small.weights["wide.weight..pruned"], graph.weights["wide.weight"][kept])


def test_random_is_seeded():
    texts = [fingerprint(f"prune-channels{{criterion=random,seed={seed}}}") for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def fingerprint(pipeline: str) -> str:
    return tersor.ir.fingerprint(run_passes(residual_net(), pipeline))


def test_kept_counts_are_multiples():
    graph = residual_net(32)
    for options, target in (("macs=0.6", resolve_target("x86:avx2")), ("macs=0.6,multiple=8", None)):
        small = run_passes(graph, f"prune-channels{{{options}}}", target=target)
        assert all(count % 8 == 0 for where, count in channels_of(small).items() if where != "classify")
        assert small.cost().macs <= 0.6 * graph.cost().macs
    odd = run_passes(graph, "prune-channels{macs=0.6,multiple=1}", target=resolve_target("x86:avx2"))
    assert any(count % 8 for where, count in channels_of(odd).items() if where != "classify")


def test_floor():
    small = run_passes(residual_net(), "prune-channels{macs=0.551,floor=0.7}")
    assert channels_of(small) == {"stem": 12, "wide": 23, "narrow": 12, "classify": 5}


def test_groups_that_are_tied_in_a_grouped_convolution_are_rounded_together():
    b = GraphBuilder({"x": TensorType((1, 3, 6, 6))})
    x = b.conv(b.conv(b.graph.inputs[0], 32, location="first"), 64, groups=4, location="grouped")
    small = run_passes(b.done(b.conv(x, 3, location="last")), "prune-channels{multiple=8}")
    found = channels_of(small)
    assert found["first"] % 8 == 0 and found["grouped"] % 8 == 0
    assert found["grouped"] < 64


def test_running_it_again_prunes_what_is_left():
    graph = residual_net()
    once, twice = run_passes(graph, "prune-channels"), run_passes(graph, "prune-channels,prune-channels")
    assert structurally_equal(run_passes(once, "prune-channels"), twice)
    assert twice.cost().macs <= 0.25 * graph.cost().macs


def test_fused_groups_are_taken_apart_and_fused_again():
    graph = residual_net()
    assert structurally_equal(run_passes(graph, "O3,prune-channels"), run_passes(graph, "O2,prune-channels,fuse"))


def test_bisection_leaves_groups_out():
    graph = residual_net()
    full = channels_of(run_passes(graph, "prune-channels"))
    assert structurally_equal(run_passes(graph, "prune-channels", bisect_limit=0), graph)
    assert channels_of(run_passes(graph, "prune-channels", bisect_limit=1)) == {**full, "wide": 32}


def test_bisection_among_fused_groups():
    graph = residual_net()
    total = sum(len(record.applied) for record in run(graph, "O3,prune-channels").report.records)
    for limit in range(total):
        small = PassManager(as_pipeline("O3,prune-channels"), (VerifyEach(),), limit).run(graph).graph
        assert small.outputs[0].shape == graph.outputs[0].shape


def test_a_new_criterion_is_one_registration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry.CRITERIA, "entries", dict(registry.CRITERIA.entries))

    @register_criterion("first-channels")
    def first_channels(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
        return [-np.arange(group.size) / group.size for group in groups]

    small = run_passes(residual_net(), "prune-channels{criterion=first-channels}")
    kept = small.weights["stem.weight..pruned"]
    assert torch.equal(kept, residual_net().weights["stem.weight"][: len(kept)])
    with pytest.raises(TersorError, match="'first-channels' is registered twice"):
        register_criterion("first-channels")(first_channels)


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("macs=0", "macs is the ratio of multiply-adds to leave, above 0 and below 1, not 0"),
        ("macs=1.5", "macs is the ratio of multiply-adds to leave, above 0 and below 1, not 1.5"),
        ("criterion=l3", "unknown criterion 'l3'; did you mean 'l2'?"),
        ("criterion=bn_gama", "unknown criterion 'bn_gama'; did you mean 'bn-gamma'?"),
        ("floor=2", "floor is a fraction of channels, from 0 to 1, not 2"),
        ("multiple=-1", "multiple must be 1 or more, or 0 for the target's vector width, not -1"),
    ],
)
def test_bad_options(options: str, message: str):
    with pytest.raises(PipelineError, match=re.escape(message)):
        parse_pipeline(f"prune-channels{{{options}}}")


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("prune-channels{macs=0.001}", r"macs=0.001 would empty a layer: 0\.0\d+ of the multiply-adds remain"),
        (
            "prune-channels{macs=0.3,floor=0.9}",
            r"keeps its smallest number of channels \(floor=0.9, in multiples of 1\)",
        ),
        ("prune-channels{multiple=32}", r"nothing to prune: no group may shrink \(floor=0.1, in multiples of 32\)"),
        ("O2,prune-channels{criterion=bn-gamma}", "put prune-channels before fold-batchnorm"),
        ("layout{block=8},prune-channels", "layouts are chosen already; run prune-channels before layout"),
    ],
)
def test_what_cannot_be_done_is_one_line(pipeline: str, message: str):
    with pytest.raises(TersorError, match=message) as caught:
        run_passes(residual_net(), pipeline)
    assert "\n" not in str(caught.value)


def test_nothing_to_prune():
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    single = b.done(b.conv(b.graph.inputs[0], 4, location="only"))
    with pytest.raises(TersorError, match=r"nothing to prune.* 'only' stay, since they reach output 0 of the graph"):
        run_passes(single, "prune-channels")
    b = GraphBuilder({"x": TensorType((1, 3, 8, 8))})
    with pytest.raises(TersorError, match="nothing to prune: the graph has no convolution or linear layer"):
        run_passes(b.done(b.op(ReluOp, b.graph.inputs[0])), "prune-channels")


def test_weights_that_are_not_numbers():
    graph = residual_net()
    graph.weights["wide.weight"][3, 0] = float("nan")
    with pytest.raises(TersorError, match=r"weight 'wide\.weight' has numbers that are not finite"):
        run_passes(graph, "prune-channels")


def test_weights_must_be_loaded():
    with pytest.raises(TersorError, match="weights are not loaded"):
        run_passes(parse(str(residual_net())), "prune-channels")


# Round trip ---------------------------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """Every usual coupling once: residual, depthwise, squeeze and excitation, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Sigmoid()
        )
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        return self.head(torch.relu(x + y * self.gate(y)))


def test_to_torch_trains_saves_and_comes_back():
    torch.manual_seed(0)
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    small = run_passes(tersor.from_torch(SmallNet().eval(), x), "prune-channels")
    module = small.to_torch()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    module.train()
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in module.parameters())

    module.eval()
    fresh = to_torch(small)
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(fresh(x), module(x))
    back = tersor.from_torch(module, x)
    torch.testing.assert_close(back.evaluate(x)[0], module(x).detach())
    assert back.cost().macs == small.cost().macs
    assert isinstance(run_passes(back, [PruneChannels(macs=0.9)]), Graph)
