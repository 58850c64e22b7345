"""One task's search: what it proposes, when it ends, and what it believes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersor.targets.codegen.options import Options
from tersor.targets.tuning.examples import Examples
from tersor.targets.tuning.model import Ranker
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.records import Record
from tersor.targets.tuning.search import SearchOptions, TaskSearch
from tersor.tests.tuning.fakes import FakeMeasurer, conv_task, true_seconds

TASK = conv_task(512, 4, 512)  # its default is no transform, and not the fastest


def new_search(task=TASK, **settings) -> TaskSearch:
    return TaskSearch(task, Options(task.workload, task.target), SearchOptions(**settings))


def search_all(search: TaskSearch, measurer: FakeMeasurer, limit: int = 1000) -> Ranker:
    """Search one task to its end."""
    ranker, generator, examples = Ranker(), np.random.default_rng(0), Examples()
    while not search.done and search.trials < limit:
        options = search.propose(ranker, generator)
        outcomes = measurer.measure(search.task, options, search.default)
        search.record(outcomes, ranker)
        for outcome in outcomes:
            examples.add(Record.now(search.task, outcome))
        ranker.fit(examples.all())
    return ranker


def fastest(search: TaskSearch) -> float:
    return min(true_seconds(search.task, option) for option in search.options)


def test_first_batch_holds_the_default_and_every_template():
    search = new_search()
    batch = search.propose(Ranker(), np.random.default_rng(0))
    assert batch[0] == search.default
    assert {option.template for option in batch} == {option.template for option in search.options}
    assert len(batch) == len(set(batch)) == 8


def test_finds_the_best_without_measuring_all():
    search = new_search()
    search_all(search, FakeMeasurer())
    assert true_seconds(TASK, search.best) <= 1.02 * fastest(search)
    assert true_seconds(TASK, search.default) > 1.1 * fastest(search)  # there was something to find
    assert search.trials < len(search.options)


def test_drift_does_not_fool_it():
    """Each batch is 30 % slower than the one before: only the ratio to the default tells who is fast."""
    search = new_search()
    search_all(search, FakeMeasurer(drift=1.3))
    assert true_seconds(TASK, search.best) <= 1.03 * fastest(search)


def test_same_seed_same_search():
    trials = []
    for _ in range(2):
        measurer = FakeMeasurer()
        search_all(new_search(), measurer)
        trials.append([option for _, option in measurer.measured])
    assert trials[0] == trials[1]


def test_a_lucky_timing_is_measured_again():
    search = new_search()
    ranker, generator = Ranker(), np.random.default_rng(0)
    batch = search.propose(ranker, generator)
    lucky = batch[3]
    seconds = [0.5 if option == lucky else 1.0 for option in batch]
    search.record([Outcome(o, "ok", s, baseline=1.0) for o, s in zip(batch, seconds, strict=True)], ranker)
    assert search.best == lucky and search.unconfirmed
    assert lucky in search.propose(ranker, generator)
    search.restore([Outcome(lucky, "ok", 1.6, baseline=1.0)])
    assert search.ratio(lucky) == pytest.approx(1.05)
    assert search.best != lucky


def test_samples_that_contradict_each_other_are_not_believed():
    search = new_search()
    first, second = search.options[:2]
    search.restore([Outcome(first, "ok", 1.0, baseline=1.0), Outcome(second, "ok", 0.5, baseline=1.0)])
    search.restore([Outcome(second, "ok", 0.8, baseline=1.0)])
    assert search.unconfirmed
    search.restore([Outcome(second, "ok", 0.8, baseline=1.0)] * 2)
    assert not search.unconfirmed
    assert search.ratio(second) == pytest.approx(0.8)


def test_failures_count_as_trials_and_never_win():
    search = new_search()
    search_all(search, FakeMeasurer(fails=lambda option: "ok" if option.template == "conv2d" else "crash"))
    assert search.best.template == "conv2d"
    assert search.failed > 0
    assert math.isnan(search.ratio(next(o for o in search.options if o.template == "winograd")))


def test_task_whose_default_fails_is_given_up():
    search = new_search()
    default = search.default
    search_all(search, FakeMeasurer(fails=lambda option: "wrong" if option == default else "ok"))
    assert search.failing and search.done
    assert search.trials <= 8
    assert math.isnan(search.default_seconds)


def test_task_with_one_candidate_is_measured_once():
    search = TaskSearch(TASK, [new_search().default], SearchOptions())
    measurer = FakeMeasurer()
    search_all(search, measurer)
    assert search.done and len(measurer.measured) == 1
    assert search.expected_gain(Ranker()) == 0.0


def test_patience_ends_a_search_that_finds_nothing():
    search = new_search(patience=8, batch=4)
    ranker, generator = Ranker(), np.random.default_rng(0)
    while not search.done:
        batch = search.propose(ranker, generator)
        search.record([Outcome(o, "ok", 1.0, baseline=1.0) for o in batch], ranker)
    assert search.trials == 12


def test_expected_gain_falls_to_nothing():
    search = new_search()
    assert search.expected_gain(Ranker()) == 1.0
    ranker = search_all(search, FakeMeasurer(), limit=8)
    assert 0 < search.expected_gain(ranker) < 0.5
    ranker = search_all(search, FakeMeasurer())
    assert search.expected_gain(ranker) == 0.0


def test_a_default_that_was_timed_beside_others_need_not_be_tried_first():
    search = new_search()
    timed = search.options[1:9]
    search.restore([Outcome(option, "ok", 1e-3, 0.01, 7, baseline=1e-3) for option in timed])
    assert 0 < search.expected_gain(Ranker()) < 0.5


def test_what_is_quick_to_build_comes_first():
    """Of two candidates that promise the same, the one that is built sooner is tried."""

    class Equal(Ranker):
        def predict(self, samples):
            return np.zeros(len(samples))

    search = new_search(explore=0.0)
    ranker = Equal()
    batch = search.propose(ranker, np.random.default_rng(0))
    search.record([Outcome(option, "ok", 1.0, baseline=1.0) for option in batch], ranker)
    left = ranker.costs(search.features(search.untried))
    chosen = ranker.costs(search.features(search.propose(ranker, np.random.default_rng(0))))
    assert chosen.max() <= np.sort(left)[len(chosen) - 1]


def test_batch_report():
    search = new_search()
    ranker = Ranker()
    batch = search.propose(ranker, np.random.default_rng(0))
    measurer = FakeMeasurer(noise=0.0, fails=lambda option: "timeout" if option == batch[2] else "ok")
    report = search.record(measurer.measure(TASK, batch, search.default), ranker)
    assert (report.trials, report.failed) == (8, 1)
    assert -1 <= report.correlation <= 1
    assert report.regret >= 0


def test_settings_are_checked():
    with pytest.raises(ValueError, match="batch"):
        SearchOptions(batch=0)
    with pytest.raises(ValueError, match="explore"):
        SearchOptions(explore=1.5)
