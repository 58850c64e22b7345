"""``prune-blocks``: what a residual block is, which of them go, and what the pass says."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir import Graph, TensorType, TersorError
from tersor.ir.ops import AddOp, FusedOp, ReluOp
from tersor.passes import PassManager, PassOutcome, PipelineError, as_pipeline, parse_pipeline, run_passes
from tersor.passes.instruments import CheckEach, VerifyEach
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.passes.pruning.blocks import Block, find_blocks
from tersor.tests.passes.lowrank.planted import Clock, Reading
from tersor.tests.random_graphs import GraphBuilder

BATCHES = [torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Residual(nn.Module):
    """x + scale * conv(relu(conv(x)))."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        scaled(self.second, scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


def scaled(layer: nn.Module, scale: float) -> None:
    """Multiply all that a layer learned."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale)


def network(*scales: float) -> nn.Sequential:
    """Blocks that move what passes through them more or less."""
    torch.manual_seed(0)
    return nn.Sequential(*(Residual(4, scale) for scale in scales), nn.Conv2d(4, 3, 1)).eval()


def run(model: nn.Module | Graph, options: str, **given: Any) -> PassOutcome:
    graph = model if isinstance(model, Graph) else tersor.from_torch(model, BATCHES[0])
    given.setdefault("calibration", BATCHES)
    manager = PassManager(as_pipeline(f"prune-blocks{{{options}}}"), (VerifyEach(), CheckEach()))
    return manager.run(graph, **given)


def notes(outcome: PassOutcome) -> tuple[str, ...]:
    return outcome.report.records[0].notes


def gone(outcome: PassOutcome) -> list[str]:
    """The names of the blocks that went, in order."""
    return [verdict.name for verdict in outcome.report.records[0].verdicts if not verdict.is_whole]


def blocks(model: nn.Module, *inputs: Tensor) -> list[Block]:
    return find_blocks(tersor.from_torch(model.eval(), inputs))


# What a block is ----------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Two layers of PyTorch's own."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu")
        self.layers = nn.ModuleList([layer, copy.deepcopy(layer)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_and_the_layers_behind_it_are_two_blocks(norm_first: bool):
    found = blocks(Transformer(norm_first), torch.randn(1, 3, 8))
    assert [block.name for block in found] == ["layers.0.self_attn", "layers.0", "layers.1.self_attn", "layers.1"]
    assert found[1].layers == ("layers.0.linear1", "layers.0.linear2")


def test_what_is_no_block():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.gelu(x + 0.1 * x**3, approximate="tanh")  # no layer is saved
            x = self.a(x) + self.b(x)  # a projection in place of x
            return x.amax(1, keepdim=True) + self.c(x)  # the sum is wider than what would stay

    assert blocks(Odd(), BATCHES[0]) == []


def test_several_branches_of_one_value_are_several_blocks():
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x) + self.b(x)
            return self.last(x)

    found = blocks(Parallel(), torch.randn(2, 4))
    assert [block.name for block in found] == ["a", "b"]
    assert [block.macs() for block in found] == [32, 32]


def test_blocks_of_one_path_are_numbered_and_what_others_read_is_not_saved():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.inner(x)
            x = x + self.tied(hidden)
            return x + self.tied(x), hidden

    found = blocks(Shared(), torch.randn(2, 4))
    assert [block.name for block in found] == ["tied", "tied #2"]
    assert [block.macs() for block in found] == [32, 32]  # `inner` is an output
    assert all(not op.inputs or op.location == "tied" for block in found for op in block.private_ops())


def test_a_block_within_a_block():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inside, self.behind = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            return x + self.behind(y + self.inside(y))

    torch.manual_seed(0)
    model = Nested()
    found = blocks(model, BATCHES[0])
    assert [block.layers for block in found] == [("inside",), ("before", "inside", "behind")]
    outcome = run(model.eval(), "ratio=1")
    assert outcome.graph.cost().macs == 0
    assert outcome.graph.outputs == outcome.graph.inputs


# Which blocks go ----------------------------------------------------------------------------------------------------


def test_the_block_that_costs_least_goes_first():
    model = network(1.0, 0.01, 0.5, 0.1)
    outcome = run(model, "count=2")
    assert gone(outcome) == ["1", "3"]
    expected = nn.Sequential(*(model[index] for index in (0, 2, 4)))
    with torch.no_grad():
        assert not deviation((expected(BATCHES[0]),), outcome.graph.evaluate(BATCHES[0])).exceeds(1e-6)
        torch.testing.assert_close(outcome.graph.to_torch()(BATCHES[0]), expected(BATCHES[0]))
    assert set(outcome.graph.weights) == {name for name in model.state_dict() if name[0] in "024"}


def test_report():
    whole, count, *lines = notes(run(network(1.0, 0.01, 0.5, 0.1), "count=2,skip=[0.*]"))
    assert re.fullmatch(
        r"whole graph: multiply-adds 46944 -> 23904 \(0\.509\), not measured; before fine-tuning, output 0 differs .*",
        whole,
    )
    assert count == "2 of 4 blocks go"
    assert [re.sub(r"0\.\d+ off", "n off", line) for line in lines] == [
        "1: multiply-adds 11520 -> 0 (0.000), not measured; outputs n off without it and those before",
        "3: multiply-adds 11520 -> 0 (0.000), not measured; outputs n off without it and those before",
        "0 stays: skip '0.*'",
        "2 stays: outputs n off without it alone",
    ]


def test_the_distance_is_that_of_the_outputs():
    model = network(1.0, 0.2)
    *_, line, _ = notes(run(model, "count=1"))
    with torch.no_grad():
        exact = torch.cat([model(batch) for batch in BATCHES])
        found = torch.cat([model[2](model[0](batch)) for batch in BATCHES])
    distance = ((found - exact).norm() / exact.norm()).item()
    assert f"outputs {distance:.3g} off" in line


def test_blocks_are_tried_again_without_those_that_went():
    """The second block undoes what the first one does: none of the two can go alone, but both together can."""
    model = network(1.0, 1.0, 0.9)
    for block, sign in ((model[0], 1.0), (model[1], -1.0)):
        nn.init.zeros_(block.first.weight)
        nn.init.constant_(block.first.bias, 1.0)
        nn.init.zeros_(block.second.weight)
        nn.init.constant_(block.second.bias, 5.0 * sign)
    assert gone(run(model, "count=1")) == ["2"]
    outcome = run(model, "count=2,skip=[2]")
    assert gone(outcome) == ["0", "1"]
    first, second = (re.search(r"outputs (\S+) off", note) for note in notes(outcome)[2:4])
    assert first is not None and second is not None
    assert float(second[1]) < 1e-6 < 0.1 < float(first[1])


@pytest.mark.parametrize(
    ("options", "left"),
    [("macs=0.8", 3), ("macs=0.3", 1), ("ratio=0.5", 2), ("ratio=0.3", 2), ("count=3,macs=0.8", 1), ("", 2)],
)
def test_goals(options: str, left: int):
    outcome = run(network(0.1, 0.2, 0.3, 0.4), options)
    assert len(find_blocks(outcome.graph)) == left


def test_of_blocks_of_different_size_the_one_that_costs_least_for_its_size_goes():
    """The last step counts what is missing only: a large block is not taken where a small one is enough."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.small, self.large = Residual(4, 0.1), Residual(4, 0.13)
            self.large.first = nn.Conv2d(4, 32, 3, padding=1)
            self.large.second = nn.Conv2d(32, 4, 1)
            scaled(self.large.second, 0.05)

        def forward(self, x: Tensor) -> Tensor:
            return self.large(self.small(x))

    model = Two().eval()
    costs = {line.split()[0]: line for line in notes(run(model, "count=2"))[2:]}
    assert set(costs) == {"small:", "large:"}
    assert gone(run(model, "macs=0.5")) == ["large"]
    assert gone(run(model, "macs=0.95")) == [min(gone(run(model, "count=1")))]


def closeness(output: Tensor, batch: int) -> Tensor:
    """Large outputs cost much."""
    assert batch < len(BATCHES)
    return output.square().mean()


def test_loss_of_the_user():
    graph = tersor.from_torch(network(1.0, 0.01, 2.0), BATCHES[0])
    name = f"{closeness.__module__}:closeness"
    outcome = run(graph, f'count=1,loss="{name}"')
    losses = {}
    for block in find_blocks(graph):
        without = graph.clone()
        twin = without.ops[graph.ops.index(block.add)]
        twin.results[0].replace_uses(twin.operands[block.stays])
        losses[block.name] = sum(closeness(*without.evaluate(one), 0).item() for one in BATCHES) / len(BATCHES)
    best = min(losses, key=losses.__getitem__)
    assert gone(outcome) == [best]
    assert f"loss {losses[best]:.4g} without it and those before" in notes(outcome)[2]


# The clock ----------------------------------------------------------------------------------------------------------


def test_blocks_stay_that_are_no_faster_gone():
    class Half(Clock):
        """The first block costs no time."""

        def compare(self, before: Graph, after: Graph) -> Reading:
            is_first = any(op.location.startswith("0.") for op in before.ops) and len(before.ops) < 10
            return Reading(1.0, 1.0, 0.02) if is_first else super().compare(before, after)

    outcome = run(network(0.01, 1.0, 2.0), "count=1", latency=Half())
    assert gone(outcome) == ["1"]
    assert "0 stays: a call is not faster without it" in notes(outcome)
    assert gone(run(network(0.01, 1.0, 2.0), "count=1,keep=all", latency=Half())) == ["0"]
    missed = "count=3 is not reached: 0.333 of the blocks remain without 2 of 3 blocks, and 1 would be no faster gone"
    assert missed in notes(run(network(0.01, 1.0, 2.0), "count=3", latency=Half()))


def test_the_whole_stays_where_it_is_slower():
    class Slower(Clock):
        def compare(self, before: Graph, after: Graph) -> Reading:
            self.asked.append((before, after))
            whole = len(before.outputs[0].shape) == 4 and before.outputs[0].shape[1] == 3
            return Reading(1.0, 2.0, 0.02) if whole else super().compare(before, after)

    graph = tersor.from_torch(network(0.1, 1.0), BATCHES[0])
    outcome = run(graph, "count=1", latency=Slower())
    assert not outcome.report.records[0].changed
    assert str(outcome.graph) == str(graph)
    assert notes(outcome)[0].startswith("whole graph undone, slower")


def test_latency_is_that_of_the_whole_network():
    clock = Clock(launch=2e-5)  # of each op, which blocks have fewer of than the network
    graph = tersor.from_torch(network(0.1, 0.2, 0.3, 0.4), BATCHES[0])
    for wanted in (0.8, 0.5):
        outcome = run(graph, f"latency={wanted}", latency=clock)
        share = clock.graph_seconds(outcome.graph) / clock.graph_seconds(graph)
        assert share <= wanted * 1.03
        assert f"latency={wanted:g}: {share:.3f} of the time measured" in notes(outcome)


# Graphs as they come ------------------------------------------------------------------------------------------------


def test_fused_graphs_are_fused_again():
    graph = run_passes(tersor.from_torch(network(1.0, 0.01), BATCHES[0]), "O3")
    assert any(isinstance(op, FusedOp) for op in graph.ops)
    outcome = run(graph, "count=1")
    assert gone(outcome) == ["1"]
    assert any(isinstance(op, FusedOp) for op in outcome.graph.ops)


def test_dynamic_shapes():
    graph = tersor.from_torch(network(1.0, 0.01), BATCHES[0], dynamic_shapes={"input": {0: "batch"}})
    outcome = run(graph, "count=1")
    assert gone(outcome) == ["1"]
    assert outcome.graph.symbols
    (five,) = outcome.graph.evaluate(torch.randn(5, 4, 6, 6))
    assert five.shape == (5, 3, 6, 6)


def test_bisection():
    graph = tersor.from_torch(network(1.0, 0.01, 0.02), BATCHES[0])
    for limit, left in ((0, 3), (1, 2), (2, 1)):
        small = run_passes(graph, "prune-blocks{count=2}", calibration=BATCHES, bisect_limit=limit)
        assert len(find_blocks(small)) == left


def test_dead_layers_hold_no_block():
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    x = b.graph.inputs[0]
    hidden = b.conv(x, 4, location="a")
    b.op(ReluOp, hidden)  # nobody reads it
    graph = b.done(b.conv(b.op(AddOp, x, hidden), 2, location="last"))
    small = run_passes(graph, "prune-blocks{count=1}", calibration=[seeded_inputs(graph)])
    assert [op.location for op in small.ops if op.inputs] == ["last"]


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("count=5", "count=5 cannot be reached: 0.000 of the blocks remain without 2 of 2 blocks"),
        ("macs=0.01", "macs=0.01 cannot be reached: 0.0"),
        ("count=2,skip=[1]", "count=2 cannot be reached: 0.500 of the blocks remain without 1 of 2 blocks"),
        ("count=1,skip=[2.*]", "skip: '2.*' matches no residual block; blocks are called 0, 1"),
        ("latency=0.5", "latency=0.5 needs a clock"),
    ],
)
def test_what_cannot_be(options: str, message: str):
    with pytest.raises(TersorError, match=re.escape(message)) as caught:
        run(network(1.0, 0.5), options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("macs=1.5", "macs is the ratio of multiply-adds to leave, above 0 and below 1, not 1.5"),
        ("latency=0", "latency is the ratio of measured time to leave, above 0 and below 1, not 0"),
        ("ratio=0", "ratio is the share of blocks that goes, above 0 and up to 1, not 0"),
        ("count=0", "count is how many blocks go, 1 or more, not 0"),
        ("keep=0", "blocks that stay are named by skip="),
        ("loss=nowhere", "is not of the form package.module:function"),
    ],
)
def test_options(options: str, message: str):
    with pytest.raises((PipelineError, TersorError), match=re.escape(message)):
        parse_pipeline(f"prune-blocks{{{options}}}")


@pytest.mark.filterwarnings("ignore:weight .* contains NaN")
def test_refusals_of_graphs():
    chain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    with pytest.raises(TersorError, match="nothing to prune: no sum of a value and of what layers make of it"):
        run(chain, "count=1")
    with pytest.raises(TersorError, match="pass 'prune-blocks' needs calibration data"):
        run(network(1.0), "count=1", calibration=None)
    laid_out = run_passes(
        tersor.from_torch(network(1.0), BATCHES[0]), "layout", target=tersor.targets.resolve_target("x86:avx2")
    )
    if any(op.name == "relayout" for op in laid_out.ops):
        with pytest.raises(TersorError, match="layouts are chosen already; run prune-blocks before layout"):
            run(laid_out, "count=1")
    broken = network(1.0, 0.5)
    with torch.no_grad():
        broken[2].bias[0] = float("nan")
    with pytest.raises(TersorError, match=r"calibration batch 0 makes outputs that are not a number \(NaN\)"):
        run(broken, "count=1")
