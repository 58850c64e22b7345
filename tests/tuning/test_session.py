"""Whole sessions: they converge, resume, stop, and survive what goes wrong."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from rich.console import Console

from tersor import TersorError
from tersor.cli.tuning_progress import Lines, LiveTable, results_table
from tersor.targets.codegen.options import Options
from tersor.targets.tuning import log, model
from tersor.targets.tuning import session as session_module
from tersor.targets.tuning.chart import draw
from tersor.targets.tuning.log import read_log
from tersor.targets.tuning.observer import Observer
from tersor.targets.tuning.records import CONFIRMATIONS, best, fitting
from tersor.targets.tuning.result import TuningResult
from tersor.targets.tuning.scheduler import Budget
from tersor.targets.tuning.search import SearchOptions
from tersor.targets.tuning.session import TuningSession
from tersor.tests.tuning.fakes import TARGET, FakeMeasurer, conv_tasks, true_seconds


class Messages(Observer):
    """Keeps what a session says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def tune(measurer: FakeMeasurer, *, count: int = 4, trials: int | None = None, seconds: float | None = None, **rest):
    budget = Budget(trials, seconds)
    return TuningSession(conv_tasks(count), measurer, budget, clock=measurer.clock, **rest).run()


def excess(result: TuningResult, fastest: bool = True) -> float:
    """True latency of what was chosen over that of the best, or of the default, options."""
    chosen = sum(true_seconds(one.task, one.option) for one in result.tasks)
    reference = 0.0
    for one in result.tasks:
        options = Options(one.task.workload, one.task.target)
        reference += min(true_seconds(one.task, o) for o in (options if fastest else [options.default]))
    return chosen / reference


@pytest.fixture(scope="module")
def finished() -> TuningResult:
    """A session as users get it: it runs before `few_trees` applies."""
    return tune(FakeMeasurer(noise=0.02))


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ranker that learns quickly: its trees are most of what a session costs that measures nothing."""
    monkeypatch.setattr(model, "RANKER_ROUNDS", 30)
    monkeypatch.setattr(model, "MEMBERS", 1)
    monkeypatch.setattr(model, "PARAMETERS", {**model.PARAMETERS, "eta": 0.3})


def test_converges_to_the_best_options(finished):
    assert excess(finished) < 1.03
    assert excess(finished, fastest=False) < 0.97  # there was something to gain
    assert finished.reason == "nothing more to gain"
    assert finished.trials < sum(one.candidates for one in finished.tasks)


def test_result_adds_up(finished):
    assert finished.untuned_seconds > finished.tuned_seconds > 0
    assert not finished.interrupted and not finished.failures
    assert finished.history[0].latency == pytest.approx(finished.untuned_seconds)
    assert finished.history[-1].latency == pytest.approx(finished.tuned_seconds, rel=0.03)
    assert sum(report.trials for report in finished.batches) >= finished.trials
    assert len(finished.records) >= finished.trials


def test_every_winner_was_confirmed(finished):
    for one in finished.tasks:
        samples = [r for r in finished.records if (r.workload, r.option) == (one.task.workload, one.option)]
        options = Options(one.task.workload, one.task.target)
        assert one.option == options.default or len(samples) >= 1 + CONFIRMATIONS


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_never_slower_than_the_default(seed):
    """Where timings are all noise, the default stays or what replaces it is as good."""
    result = tune(FakeMeasurer(noise=0.08), seed=seed)
    for one in result.tasks:
        options = Options(one.task.workload, one.task.target)
        assert true_seconds(one.task, one.option) <= 1.05 * true_seconds(one.task, options.default)


def test_drift_is_survived():
    assert excess(tune(FakeMeasurer(drift=1.1))) < 1.03


def test_resumes_without_measuring(tmp_path):
    first = tune(FakeMeasurer(), log_dir=tmp_path, trials=60)
    records = fitting(read_log(tmp_path).records, TARGET).records
    assert len(records) == len(first.records)
    again = FakeMeasurer()
    second = tune(again, log_dir=tmp_path, trials=60, records=records)
    assert again.measured == []
    assert second.trials == 0
    assert [one.option for one in second.tasks] == [one.option for one in first.tasks]
    assert second.tuned_seconds == pytest.approx(first.tuned_seconds)


def test_goes_on_where_it_was(tmp_path):
    tune(FakeMeasurer(), log_dir=tmp_path, trials=24)
    records = fitting(read_log(tmp_path).records, TARGET).records
    done = {(record.workload, record.option) for record in records}
    measurer = FakeMeasurer()
    result = tune(measurer, log_dir=tmp_path, records=records)
    repeated = [task for task, option in measurer.measured if (task.workload, option) in done]
    assert len(repeated) <= 3 * len(result.tasks)  # only what was to be confirmed
    assert excess(result) < 1.03


def test_other_layers_teach_a_new_one():
    """With records of other layers, a first batch already holds something as fast as the best."""
    known = tune(FakeMeasurer()).records
    *_, last = conv_tasks(6)
    measurer = FakeMeasurer()
    budget = Budget(trials=8)
    result = TuningSession([last], measurer, budget, records=known, clock=measurer.clock).run()
    options = Options(last.workload, last.target)
    assert true_seconds(last, result.tasks[0].option) <= 1.05 * min(true_seconds(last, o) for o in options)


def test_time_is_kept():
    measurer = FakeMeasurer()
    result = tune(measurer, seconds=6.0)
    assert result.seconds <= 6.5
    assert result.reason == "the time is spent"
    assert measurer.seconds == result.seconds


def test_failures_are_recorded_and_do_no_harm(tmp_path):
    statuses = {2: "crash", 3: "crash", 4: "wrong", 5: "wrong", 6: "timeout"}
    measurer = FakeMeasurer(
        fails=lambda option: statuses[option.knobs.m] if option.template == "winograd" else "ok",
    )
    messages = Messages()
    result = tune(measurer, log_dir=tmp_path, observer=messages)
    assert set(result.failures) <= set(statuses.values()) and result.failures
    failing = [one for one in result.tasks if Options(one.task.workload, TARGET).default.template == "winograd"]
    assert failing and all(one.option.template == "winograd" for one in failing)  # the default stays, untuned
    assert any("not tuned: fake" in line for line in messages.lines)
    assert all(one.option.template == "conv2d" for one in result.tasks if one not in failing)
    assert len(read_log(tmp_path).records) == len(result.records)


@pytest.mark.parametrize(("status", "attempts"), [("crash", 2), ("timeout", 2), ("wrong", 1), ("build-error", 1)])
def test_what_may_pass_is_tried_once_more_in_a_later_session(tmp_path, status, attempts):
    def fails(option):
        return status if option == unlucky else "ok"

    (task,) = conv_tasks(1)
    unlucky = Options(task.workload, task.target).default  # which every session wants to measure
    tried = []
    for _ in range(4):
        measurer = FakeMeasurer(fails=fails)
        records = fitting(read_log(tmp_path).records, TARGET).records
        tune(measurer, count=1, log_dir=tmp_path, records=records, settings=SearchOptions(patience=1000))
        tried.append(measurer.measured.count((task, unlucky)))
    assert tried[0] == 1
    assert sum(tried) == attempts


def test_interrupt_keeps_everything(tmp_path):
    result = tune(FakeMeasurer(stop_after=6), log_dir=tmp_path)
    assert result.interrupted and result.reason == "interrupted"
    assert 40 < result.trials <= sum(report.trials for report in result.batches)
    assert len(read_log(tmp_path).records) == len(result.records) > 40
    assert result.tuned_seconds <= result.untuned_seconds


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path):
    measurer = FakeMeasurer(stop_after=2)  # after the first candidate of the third batch
    result = tune(measurer, log_dir=tmp_path)
    assert result.interrupted
    assert len(result.records) == len(measurer.measured)
    assert len(read_log(tmp_path).records) == len(measurer.measured)


def test_short_time_is_shared_by_all_tasks():
    result = tune(FakeMeasurer(), count=6, seconds=4.0)
    assert all(one.trials >= 2 for one in result.tasks)
    assert result.seconds <= 4.2


def test_full_disk_costs_no_measurement(tmp_path, monkeypatch):
    def full(folder: Path, records) -> None:
        raise log.LogError(f"{folder}: no space left on device")

    monkeypatch.setattr(log, "append", full)
    messages = Messages()
    result = tune(FakeMeasurer(), log_dir=tmp_path, observer=messages)
    assert messages.lines == [f"{tmp_path}: no space left on device; going on without writing the log"]
    assert excess(result) < 1.03


def test_trials_that_ship_cost_the_user_nothing():
    def spent(count: int, records) -> int:
        return TuningSession(conv_tasks(count), FakeMeasurer(), Budget(), records=records)._earlier

    own = tune(FakeMeasurer(), trials=40).records
    known = [replace(record, is_shipped=True) for record in own]
    measurer = FakeMeasurer()
    result = tune(measurer, trials=8, records=known)
    assert result.trials == 8 and len(measurer.measured) >= 8
    assert spent(4, known) == spent(4, []) == 0
    assert spent(4, [*own, *own, *known]) == 40
    assert 0 < spent(1, own) < 40


def test_a_short_time_decides_some_tasks_rather_than_none():
    measurer = FakeMeasurer()
    measurer.seconds_each = 1.0
    result = tune(measurer, count=6, seconds=40.0)
    assert result.reason == "the time is spent"
    assert any(one.option != Options(one.task.workload, one.task.target).default for one in result.tasks)
    assert result.seconds <= 42


@pytest.mark.parametrize("budget", [Budget(), Budget(trials=100), Budget(seconds=300.0)])
def test_all_winners_are_confirmed_in_turn_when_there_is_time(budget, monkeypatch):
    class PoorDefaults(FakeMeasurer):
        def _time(self, task, option):
            is_default = option == Options(task.workload, task.target).default
            return super()._time(task, option) * (1.5 if is_default else 1.0)

    monkeypatch.setattr(session_module, "ROUNDS", 2)  # each measures all
    measurer = PoorDefaults(noise=0.001)
    session = TuningSession(conv_tasks(6), measurer, budget, clock=measurer.clock)
    result = session.run()
    assert len(best(result.records)) == 6
    confirmed = [key for key, _ in groupby(one.workload for one in result.records if one.purpose == "final")]
    assert len(set(confirmed[:6])) == len(set(confirmed[6:12])) == 6
    assert not session._confirmation.waiting


def test_tasks_that_failed_before_are_told(tmp_path):
    def fails(option):
        return "wrong"

    known = tune(FakeMeasurer(fails=fails), count=2).records
    messages = Messages()
    measurer = FakeMeasurer()
    tune(measurer, count=2, records=known, observer=messages)
    assert not measurer.measured
    assert len(messages.lines) == 2 and all("not tuned: " in line for line in messages.lines)


def test_no_tasks_is_no_mistake():
    result = TuningSession([], FakeMeasurer(), Budget(trials=10)).run()
    assert (result.tasks, result.trials) == ((), 0)


# Progress ---------------------------------------------------------------------------------------------------------


def test_plain_lines():
    text = io.StringIO()
    result = tune(FakeMeasurer(), count=2, observer=Lines(Console(file=text, soft_wrap=True)))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("2 tasks, ")
    assert len(lines) == len(result.batches) + 2
    assert "conv64x56: " in lines[1] and " 1 trials " in lines[1]  # the default, as soon as there is a result
    assert "rank correlation" in lines[2] and "regret" in lines[2]
    assert "ms untuned" in lines[-1] and "nothing more to gain" in lines[-1]


def test_live_table():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160)
    result = tune(FakeMeasurer(), count=2, seconds=60, observer=LiveTable(console))
    shown = text.getvalue()
    for column in ("share", "best ms", "gain", "GFLOP/s", "s left"):
        assert column in shown
    assert results_table(result).row_count == 2


def test_chart(tmp_path, finished):
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib")
    draw(finished.history, tmp_path / "chart.svg", "net")
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    with pytest.raises(TersorError, match="cannot be written"):
        draw(finished.history, tmp_path / "chart.abc")
