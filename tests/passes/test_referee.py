"""The referee: what stays, and what it says; pruning before it; measuring for it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import tersor
from tersor.ir import Graph, TensorType, TersorWarning, fingerprint
from tersor.ir.ops import Conv2dOp, ReluOp
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.passes.referee import Keep, Referee, Trial, output_errors
from tersor.passes.report import Times, Verdict
from tersor.targets.tuning import measured_latency
from tersor.targets.tuning.measured_latency import LEAST_NOISE, MeasuredLatency, Patience, time_alternately
from tersor.targets.tuning.predicted import PredictedLatency
from tersor.targets.tuning.times import GraphTimes, KeptTimes
from tersor.tests.checks import record_of
from tersor.tests.passes.lowrank.planted import Clock, Reading, conv_graph, linear_graph, planted
from tersor.tests.random_graphs import GraphBuilder

BIG, SMALL = linear_graph(torch.ones(20, 30)), linear_graph(torch.ones(10, 30))


class Fixed(Clock):
    """Says what it is told."""

    def __init__(self, *readings: Reading) -> None:
        super().__init__()
        self.readings = list(readings)

    def compare(self, before: Graph, after: Graph) -> Reading:
        return self.readings.pop(0)


def judge(keep: Keep, *readings: Reading, error: float | None = None):
    return Referee(keep, Fixed(*readings)).judge(Trial("layer", ((BIG, SMALL),) * len(readings), error))


def test_keeps_what_is_faster_beyond_the_noise():
    assert judge(Keep.FASTER, Reading(1.0, 0.89, 0.1)).stays
    assert not judge(Keep.FASTER, Reading(1.0, 0.91, 0.1)).stays
    assert not judge(Keep.FASTER, Reading(1.0, 1.5, 0.1)).stays
    assert judge(Keep.ALL, Reading(1.0, 1.5, 0.1)).stays


def test_notes():
    faster = judge(Keep.FASTER, Reading(2e-3, 1e-3, 0.1), error=0.0123)
    assert faster.note == "layer: multiply-adds 1800 -> 900 (0.500), 2 -> 1 ms (0.500), error 0.0123"
    slower = judge(Keep.FASTER, Reading(2e-3, 3e-3, 0.1))
    assert slower.note == "layer undone, not faster: multiply-adds 1800 -> 900 (0.500), 2 -> 3 ms (1.500)"


def test_verdicts_are_kept_as_data():
    verdicts: list[Verdict] = []
    referee = Referee(Keep.FASTER, Fixed(Reading(2e-3, 3e-3, 0.1), Reading(2e-3, 1e-3, 0.1)), verdicts)
    slower = referee.judge(Trial("layer", ((BIG, SMALL),), 0.25))
    whole = referee.judge_whole(BIG, SMALL, "output 0 differs")
    assert verdicts == [slower, whole]
    assert slower == Verdict("layer", False, "not faster", 1800, 900, Times(2e-3, 3e-3, 0.1), 0.25)
    assert (whole.stays, whole.fault, whole.is_whole, whole.remark) == (True, "", True, "output 0 differs")
    assert whole.note == "whole graph: multiply-adds 1800 -> 900 (0.500), 2 -> 1 ms (0.500); output 0 differs"
    assert slower.to_json()["times"] == {"before": 2e-3, "after": 3e-3, "noise": 0.1}


def test_several_layers_are_added_up():
    # 0.1 faster and 0.05 slower; the noise of the sum is that of independent parts
    readings = (Reading(1.0, 0.9, 0.03), Reading(1.0, 1.05, 0.04))
    verdict = judge(Keep.FASTER, *readings)
    assert not verdict.stays
    assert "multiply-adds 3600 -> 1800 (0.500), 2000 -> 1950 ms (0.975)" in verdict.note
    assert judge(Keep.FASTER, Reading(1.0, 0.9, 0.03), Reading(1.0, 1.04, 0.04)).stays


def test_without_a_clock_everything_stays():
    verdict = Referee(Keep.FASTER, None).judge(Trial("layer", ((BIG, SMALL),)))
    assert verdict.stays
    assert verdict.note == "layer: multiply-adds 1800 -> 900 (0.500), not measured"


def test_a_whole_graph_is_undone_only_if_slower():
    def whole(after: float) -> bool:
        return Referee(Keep.FASTER, Fixed(Reading(1.0, after, 0.05))).judge_whole(BIG, SMALL).stays

    assert [whole(after) for after in (0.5, 1.0, 1.04, 1.2)] == [True, True, True, False]


def test_errors_of_layers_that_share_an_operand():
    b = GraphBuilder({"x": TensorType((1, 8, 6, 6))})
    x = b.graph.inputs[0]
    one, two = (b.conv(x, 4, location=name) for name in ("one", "two"))
    graph = b.done(one, two)
    half = tersor.ir.graph_of(two.op)
    half.weights = tersor.ir.WeightStore({id: tensor / 2 for id, tensor in half.weights.items()})
    same = tersor.ir.graph_of(one.op)
    errors = output_errors(graph, {one.op: same, two.op: half}, (torch.ones(1, 8, 6, 6),))
    assert errors == {one.op: 0.0, two.op: pytest.approx(0.5, abs=1e-6)}


# Pruning ----------------------------------------------------------------------------------------------------------


def chain() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 8, 6, 6))})
    x = b.op(ReluOp, b.conv(b.graph.inputs[0], 16, location="first"))
    x = b.op(ReluOp, b.conv(x, 32, location="second"))
    return b.done(b.conv(x, 5, 1, location="third"))


def channels(graph: Graph) -> dict[str, int]:
    return {op.location: op.result.shape[1] for op in graph.ops if isinstance(op, Conv2dOp)}


def prune(latency: Clock, options: str = "", prefix: str = ""):
    return PassManager(as_pipeline(f"{prefix}prune-channels{{macs=0.5{options}}}")).run(chain(), latency=latency)


class DislikesSecond(Clock):
    """The layer "third" alone, which only the second group shrinks, is slow unless it is whole."""

    def compare(self, before: Graph, after: Graph) -> Reading:
        (*_, last) = after.ops
        self.factor = 1e3 if last.location == "third" and len(after.ops) < 5 else 1.0
        return super().compare(before, after)


def test_pruning_keeps_groups_that_are_faster():
    clock = Clock()
    outcome = prune(clock)
    before, after = clock.asked[
        1
    ]  # "second", which the first group shrinks from the left, as the other group leaves it
    assert before.inputs[0].shape[1] == 16 > after.inputs[0].shape[1]
    assert before.outputs[0].shape[1] == after.outputs[0].shape[1] < 32
    notes = outcome.report.records[0].notes
    assert channels(outcome.graph)["first"] < 16
    assert channels(outcome.graph)["second"] < 32
    assert " ms (0." in notes[0]
    assert [re.sub(r"^\d+", "n", note).split(": multiply")[0] for note in notes[2:]] == [
        "n of 16 channels: first",
        "n of 32 channels: second",
    ]
    assert all(" ms (0." in note for note in notes[2:])
    verdicts = outcome.report.records[0].verdicts
    assert sorted(verdict.note for verdict in verdicts) == sorted([notes[0], *notes[2:]])
    assert [verdict.is_whole for verdict in verdicts] == [False, False, True]


@pytest.mark.parametrize("prefix", ["", "O3,"])
def test_pruning_restores_groups_that_are_not(prefix: str):
    outcome = prune(DislikesSecond(), prefix=prefix)
    assert channels(run_passes(chain(), "prune-channels"))["second"] < 32
    ops = [one for op in outcome.graph.ops for one in (op.body.ops if op.body is not None else (op,))]
    found = {op.location: op.result.shape[1] for op in ops if isinstance(op, Conv2dOp)}
    assert found["second"] == 32
    assert found["first"] < 16
    assert (
        " of 32 channels: second undone, not faster: multiply-adds " in record_of(outcome, "prune-channels").notes[-1]
    )
    everything = prune(DislikesSecond(), ",keep=all", prefix)
    assert "undone" not in "".join(record_of(everything, "prune-channels").notes)


def test_pruning_that_helps_nowhere_changes_nothing():
    outcome = prune(Clock(factor=1e3))
    assert channels(outcome.graph) == {"first": 16, "second": 32, "third": 5}
    assert not outcome.report.records[0].changed
    fused = prune(Clock(factor=1e3), prefix="O3,")
    assert any(op.name == "fused" for op in fused.graph.ops)


def test_run_passes_takes_a_latency():
    small = run_passes(chain(), "low-rank{ranks=fixed:2}", latency=Clock(factor=1e3))
    assert fingerprint(small) == fingerprint(chain())


# Measuring --------------------------------------------------------------------------------------------------------


class Program:
    """A compiled graph, as far as measuring is concerned: a layer between conversions, which take longer."""

    info = SimpleNamespace(kernels=[SimpleNamespace(template=name) for name in ("relayout", "matmul", "relayout")])

    def __init__(self, graph: Graph) -> None:
        self.seconds = 1e-6 * graph.cost().macs

    def random_inputs(self) -> tuple:
        return ()

    def kernel_seconds(self) -> list[float]:
        return [1.0, self.seconds, 2.0]


def measured(kept: KeptTimes | None = None) -> tuple[MeasuredLatency, list[Graph]]:
    compiled: list[Graph] = []

    def compile(graphs: Sequence[Graph]) -> list[Program]:
        compiled.extend(graphs)
        return [Program(graph) for graph in graphs]

    return MeasuredLatency(cast(Any, compile), kept), compiled


def test_measured_pairs_are_kept():
    latency, compiled = measured()
    before, after = (1e-6 * graph.cost().macs for graph in (BIG, SMALL))
    for _ in range(2):
        reading = latency.compare(BIG, SMALL)
        assert (reading.before, reading.after, reading.noise) == (before, after, LEAST_NOISE)
    same_work = linear_graph(torch.full((20, 30), 7.0))
    assert latency.compare(same_work, SMALL) == reading
    assert compiled == [BIG, SMALL]
    assert latency.compare(BIG, same_work).after == latency.compare(BIG, same_work).before == before
    assert latency.graph_seconds(BIG) == before
    assert len(compiled) == 2, "the program of the first comparison is still there"


def test_what_is_announced_is_compiled_together_and_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured_latency, "MOST_PROGRAMS", 3)
    sizes = (30, 20, 10, 25, 15)
    graphs = [linear_graph(torch.ones(size, 30)) for size in sizes]
    latency, compiled = measured()
    drawn: list[int] = []

    def questions():
        for index, graph in enumerate(graphs):
            drawn.append(index)
            yield (graph,)

    latency.prepare(questions())
    assert drawn == []
    counts = []
    for graph in graphs:
        assert latency.graph_seconds(graph) == 1e-6 * graph.cost().macs
        counts.append(len(compiled))
    assert counts == [3, 3, 3, 5, 5]
    assert compiled == graphs
    latency.prepare(questions())
    latency.graph_seconds(linear_graph(torch.ones(5, 30)))
    assert len(compiled) == 6, "what has been measured is not compiled again"


def test_measured_times_are_found_by_other_processes(tmp_path: Path):
    path = tmp_path / "times"
    for context, expected in (("one machine", 2), ("one machine", 0), ("another machine", 2)):
        latency, compiled = measured(KeptTimes(path, context))
        assert latency.compare(BIG, SMALL).before == 1e-6 * BIG.cost().macs
        assert len(compiled) == expected
    path.write_text("".join(f"{line[:-2]}\n" for line in path.read_text().splitlines()) + '{"key": 3}\n[]\nx\n')
    latency, compiled = measured(KeptTimes(path, "one machine"))
    latency.compare(BIG, SMALL)
    assert len(compiled) == 2, "damaged lines count as missing"


class OneByOne:
    """Compiles what it is asked about, when it is asked, and keeps nothing: as the referee did before."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def prepare(self, questions: Iterable[Sequence[Graph]]) -> None:
        """Does nothing."""

    def graph_seconds(self, graph: Graph) -> float:
        return Program(graph).seconds

    def compare(self, before: Graph, after: Graph) -> Any:
        reading = MeasuredLatency(cast(Any, lambda graphs: [Program(one) for one in graphs])).compare(before, after)
        self.asked.append((reading.before, reading.after))
        return reading


@pytest.mark.parametrize("pipeline", ["quantize{others=bf16}", "quantize{min_sqnr=30,others=bf16}"])
def test_decisions_are_those_of_timing_each_layer_by_itself(pipeline: str, tmp_path: Path, monkeypatch):
    """With batches of programs, and with kept times, the referee gets the same numbers and decides the same."""
    monkeypatch.setattr(Program, "__init__", drawn_seconds)
    batches = [torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    path = tmp_path / "times"

    def run(latency: Any) -> tuple[str, list[Verdict]]:
        outcome = PassManager(as_pipeline(pipeline)).run(chain(), latency=latency, calibration=batches)
        return str(outcome.graph), [verdict for record in outcome.report.records for verdict in record.verdicts]

    expected = run(OneByOne())
    assert {verdict.stays for verdict in expected[1]} == {True, False}, "a clock that likes everything shows nothing"
    together, compiled = measured()
    assert run(together) == expected
    cold, first = measured(KeptTimes(path, "machine"))
    assert run(cold) == expected
    warm, second = measured(KeptTimes(path, "machine"))
    assert run(warm) == expected
    assert len(first) == len(compiled) > 0 == len(second)


def drawn_seconds(self: Program, graph: Graph) -> None:
    """Seconds that depend on the work in no simple way: some smaller layers are slower."""
    draw = random.Random(fingerprint(graph, numbers=False))
    self.seconds = 1e-6 * draw.uniform(0.5, 1.5) * (1 + graph.cost().macs)


def test_noisy_times_are_not_kept(tmp_path: Path):
    kept = KeptTimes(tmp_path / "times", "machine")
    kept.add(("work",), GraphTimes((1.0,), 0.2))
    assert KeptTimes(tmp_path / "times", "machine").find(("work",)) is None
    kept.add(("work",), GraphTimes((1.0,), 0.02))
    assert KeptTimes(tmp_path / "times", "machine").find(("work",)) == GraphTimes((1.0,), 0.02)
    assert KeptTimes(tmp_path / "times", "machine").find(("work", "work")) is None


def test_times_that_cannot_be_kept_are_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    kept = KeptTimes(tmp_path / "file" / "times", "machine")
    with pytest.warns(TersorWarning, match=r"cannot be written \(.*\).*; going on without keeping measured times"):
        kept.add(("work",), GraphTimes((1.0,), 0.02))
    kept.add(("work",), GraphTimes((1.0,), 0.02))


def test_a_clear_difference_needs_no_agreement():
    executions = 0

    def noisy(scale: float) -> Callable[[], float]:
        durations = itertools.cycle([1.0, 1.1, 1.05, 1.2, 1.15])

        def sample() -> float:
            nonlocal executions
            executions += 1
            return scale * next(durations)

        return sample

    patience = Patience(warmup=0, least=30, most=600, seconds=60.0)
    slow, fast = time_alternately([noisy(1.0), noisy(0.3)], patience)
    assert slow.seconds > fast.seconds
    clear, executions = executions, 0
    time_alternately([noisy(1.0), noisy(0.97)], patience)
    assert clear < 50 < executions


def test_interruptions_do_not_count():
    """Of the executions most are disturbed; measuring goes on until the fastest ones agree."""
    quiet, busy = (itertools.cycle(durations) for durations in ([1.0], [9.0, 4.0, 2.0, 8.0, 7.0]))
    still, disturbed = time_alternately([lambda: next(quiet), lambda: next(busy)], Patience(warmup=0, seconds=60.0))
    assert (still.seconds, still.spread) == (1.0, 0.0)
    assert (disturbed.seconds, disturbed.spread) == (2.0, 0.0)


def test_what_never_agrees_is_noise():
    durations = (1.0 + 0.1 * index for index in itertools.count())
    (series,) = time_alternately([lambda: next(durations)], Patience(warmup=0, block=2, least=4, most=8))
    assert series.seconds == pytest.approx(1.5)  # two of three executions are timed
    assert series.spread == pytest.approx(0.4 / 1.5)


def test_fingerprint_of_work():
    other = linear_graph(torch.full((20, 30), 7.0))
    assert fingerprint(other) != fingerprint(BIG)
    assert fingerprint(other, numbers=False) == fingerprint(BIG, numbers=False) != fingerprint(SMALL, numbers=False)


def test_predictions_are_compared_too():
    target = tersor.targets.resolve_target("x86:avx2")
    latency = PredictedLatency(target, [], lambda graph: run_passes(graph, "layout", target=target))
    reading = latency.compare(BIG, SMALL)
    assert reading.before == latency.graph_seconds(BIG) > reading.after == latency.graph_seconds(SMALL) > 0
    assert reading.noise > 0.5, "without records, a prediction proves nothing"
    assert not Referee(Keep.FASTER, latency).judge(Trial("layer", ((BIG, SMALL),))).stays


def test_compile_measures_on_this_machine():
    graph = conv_graph(planted("tucker2", 32, 32))
    program = tersor.compile(graph, pipeline="low-rank{ranks=fixed:4,multiple=4,keep=all}", threads=1)
    layer, whole, *_ = next(record.notes for record in program.report.records if record.name == "low-rank")
    assert " ms (" in layer
    assert " ms (" in whole
    (x,) = program.random_inputs()
    torch.testing.assert_close(program(x), graph.evaluate(x)[0], rtol=1e-4, atol=1e-4)


def test_other_machines_are_not_measured():
    graph = conv_graph(planted("tucker2", 32, 32))
    foreign = tersor.targets.Cpu("arm:test", "arm", "generic", 16, 32, 2**15, 2**20, 0, 2)
    small = tersor.run_passes(graph, "low-rank{ranks=fixed:4}", target=foreign)
    assert small.cost().macs < graph.cost().macs
