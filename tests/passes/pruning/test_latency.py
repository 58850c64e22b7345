"""``prune-channels{latency=…}``: counts by the clock, on clocks whose staircases are known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from tersor.ir import Graph, Op, TersorError
from tersor.ir.ops import Conv2dOp
from tersor.passes import PassManager, PassOutcome, PipelineError, parse_pipeline
from tersor.passes.base import Latency
from tersor.passes.instruments import VerifyEach
from tersor.passes.pruning import find_channels
from tersor.passes.pruning.select import Limits
from tersor.passes.pruning.staircase import MOST_COUNTS, counts_of
from tersor.passes.report import Report, Staircase
from tersor.tests.passes.lowrank.planted import Reading
from tersor.tests.passes.pruning.test_targets import chain, counts, residual


class Stairs:
    """A clock of kernels that compute whole blocks of channels; ``overhead`` is for each op of a whole network."""

    def __init__(self, block: int = 8, overhead: float = 0.0) -> None:
        self.block, self.overhead = block, overhead
        self.graphs = 0

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        pass

    def graph_seconds(self, graph: Graph) -> float:
        self.graphs += 1
        layers = [op for op in graph.ops if isinstance(op, Conv2dOp)]
        whole = self.overhead * len(graph.ops) if len(layers) > 1 else 0.0
        return whole + sum(map(self._layer, layers))

    def _layer(self, op: Op) -> float:
        shape = op.inputs[1].shape[:2]
        outputs, inputs = (-(-extent // self.block) * self.block for extent in shape)
        return 1e-9 * outputs * inputs * op.macs() / (shape[0] * shape[1])

    def op_seconds(self, op: object) -> float:
        raise AssertionError("graphs are measured")

    def compare(self, before: Graph, after: Graph) -> Reading:
        return Reading(self.graph_seconds(before), self.graph_seconds(after), 0.02)


def run(graph: Graph, options: str, clock: Latency | None) -> PassOutcome:
    manager = PassManager(parse_pipeline(f"prune-channels{{{options}}}"), (VerifyEach(),))
    return manager.run(graph, latency=clock)


def share(before: Graph, after: Graph, clock: Stairs) -> float:
    return clock.graph_seconds(after) / clock.graph_seconds(before)


@pytest.mark.parametrize("options", ["", "scope=layer", "scope=layer,schedule=triangle", "criterion=random,rounds=2"])
@pytest.mark.parametrize("wanted", [0.3, 0.5, 0.75])
def test_the_network_takes_the_time_that_was_asked_for(wanted: float, options: str):
    clock, graph = Stairs(block=1), chain(64, 48, 64, 96, 64)
    outcome = run(graph, f"latency={wanted},multiple=1,{options}".rstrip(","), clock)
    assert share(graph, outcome.graph, clock) == pytest.approx(wanted, rel=0.03)
    assert any(
        re.match(rf"latency={wanted:g}: 0\.\d+ of the time measured", note) for note in outcome.report.records[0].notes
    )


def test_counts_stand_at_the_edges_of_stairs():
    clock, graph = Stairs(block=16), chain(64, 64, 64)
    found = counts(run(graph, "latency=0.5,multiple=4", clock).graph)
    assert all(found[name] % 16 == 0 for name in ("c0", "c1", "c2")), found
    by_macs = counts(run(graph, "macs=0.5,multiple=4,keep=all", clock).graph)
    assert any(by_macs[name] % 16 for name in ("c0", "c1", "c2"))


def test_importance_decides_where_time_is_equal():
    graph = chain(32, 32, 32)
    graph.weights["c1.weight"][8:] *= 1e-3
    graph.weights["c2.weight"][:, 8:] *= 1e-3
    found = counts(run(graph, "latency=0.6,multiple=8", Stairs()).graph)
    assert found["c1"] <= 16
    assert found["c0"] + found["c2"] > 40


def test_what_the_model_does_not_know_is_corrected():
    clock, graph = Stairs(block=1, overhead=1e-5), residual()
    outcome = run(graph, "latency=0.6,multiple=1,floor=0", clock)
    notes = outcome.report.records[0].notes
    measured = share(graph, outcome.graph, clock)
    assert any(f"{measured:.3f} of the time measured" in note for note in notes), notes


def test_a_target_between_two_counts_is_missed_and_said():
    notes = run(chain(16, 16), "latency=0.8,multiple=8", Stairs()).report.records[0].notes
    assert any("more than 3% off" in note for note in notes), notes


def test_other_wishes_hold_too():
    graph = chain(32, 32, 32)
    small = run(graph, "latency=0.6,multiple=1,skip=[c1]", Stairs(1)).graph
    assert counts(small)["c1"] == 32
    assert share(graph, small, Stairs(1)) == pytest.approx(0.6, rel=0.03)
    small = run(graph, "latency=0.6,multiple=1,ratio={c1: 0.25}", Stairs(1)).graph
    assert counts(small)["c1"] == 24
    small = run(graph, "latency=0.9,macs=0.4,multiple=1", Stairs(1)).graph
    assert small.cost().macs <= 0.4 * graph.cost().macs


def test_counts_that_are_measured_fill_tiles():
    group = find_channels(chain(200)).groups[0]
    found = counts_of(group, Limits(0.1, 8))
    assert found == (24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 200)
    assert counts_of(group, Limits(0.0, 64)) == (64, 128, 192, 200)
    assert len(counts_of(group, Limits(0.0, 1))) <= 2 * MOST_COUNTS


def test_layers_are_measured_alone_once_for_each_count():
    clock = Stairs()
    run(chain(16, 16), "latency=0.6,multiple=4", clock)
    assert clock.graphs < 40


def test_the_report_shows_the_staircase():
    outcome = run(chain(32, 64), "latency=0.6,multiple=8", Stairs())
    (record,) = outcome.report.records
    text = str(Report(outcome.report.records))
    assert max(map(len, text.splitlines()[2:])) <= 80
    small = counts(outcome.graph)
    assert f"c1 keeps {small['c1']} of 64 channels" in text
    assert f"[{small['c1']}]:" in text
    first = record.to_json()["staircases"][0]
    assert [count for count, _ in first["steps"]] == [8, 16, 24, 32]
    assert np.all(np.diff([seconds for _, seconds in first["steps"]]) > 0)
    assert json.dumps(record.to_json()["staircases"])


def test_a_table_of_a_group():
    lines = Staircase("features.0", tuple((8 * n, 1.234e-4 * n) for n in range(1, 9)), 16).lines(62)
    assert lines == [
        "features.0 keeps 16 of 64 channels",
        "       8: 123.4   [16]: 246.8     24: 370.2     32: 493.6",
        "      40: 617       48: 740.4     56: 863.8     64: 987.2",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("latency=1", "latency is the ratio of measured time to leave, above 0 and below 1, not 1"),
        ("latency=0", "latency is the ratio of measured time to leave, above 0 and below 1, not 0"),
        ("keep=[c1]", "got a list; layers that keep all their channels are named by skip=[…]"),
    ],
)
def test_bad_options(options: str, message: str):
    with pytest.raises(PipelineError, match=re.escape(message)):
        parse_pipeline(f"prune-channels{{{options}}}")


@pytest.mark.parametrize(
    ("options", "clock", "message"),
    [
        ("latency=0.5", None, "latency=0.5 needs a clock: name a target whose code runs on this machine, such as x86"),
        ("latency=0.01", Stairs(), "latency=0.01 would empty a layer: 0."),
        ("latency=0.01,scope=layer", Stairs(), "latency=0.01 would empty a layer: 0."),
        ("latency=0.5,skip=[d*]", Stairs(), "skip: 'd*' matches no layer"),
    ],
)
def test_what_cannot_be_done_is_one_line(options: str, clock: Stairs | None, message: str):
    with pytest.raises(TersorError, match=re.escape(message)) as caught:
        run(chain(16, 24), f"{options},multiple=1", clock)
    assert "\n" not in str(caught.value)


class Stale(Stairs):
    """Says of whole networks what was measured while others used the processors."""

    def graph_seconds(self, graph: Graph) -> float:
        return super().graph_seconds(graph) * (3 if len(graph.ops) > 8 else 1)

    def compare(self, before: Graph, after: Graph) -> Reading:
        return Reading(super().graph_seconds(before), super().graph_seconds(after), 0.02)


def test_a_model_that_is_far_off_is_put_right():
    graph, clock = chain(64, 64, 64), Stairs(1)
    small = run(graph, "latency=0.5,multiple=1", Stale(1)).graph
    assert share(graph, small, clock) == pytest.approx(0.5, rel=0.1)
