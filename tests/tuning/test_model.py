"""Features, the ranker and the latency regressor, on a machine whose times are a formula."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from tersor import TersorError
from tersor.targets.codegen.options import Options
from tersor.targets.templates.attention.spec import AttentionSpec
from tersor.targets.templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from tersor.targets.templates.matmul.spec import ACTIVATION, MatmulKnobs, MatmulSpec
from tersor.targets.templates.moves.relayout import TO_BLOCKED, RelayoutSpec
from tersor.targets.templates.option import Option
from tersor.targets.templates.windows.pooling import PoolSpec
from tersor.targets.tuning.estimate import work_of
from tersor.targets.tuning.examples import typical_seconds
from tersor.targets.tuning.features import Table, describe_candidate
from tersor.targets.tuning.geometry import geometry_features, geometry_of
from tersor.targets.tuning.latency import LatencyRegressor
from tersor.targets.tuning.model import Example, Ranker, Trees, place_of_best, rank_correlation, regret, within_groups
from tersor.targets.tuning.outcome import Outcome
from tersor.targets.tuning.task import Task
from tersor.tests.tuning.fakes import TARGET, conv_task, conv_tasks, true_seconds


def examples_of(task: Task, noise: float = 0.0) -> list[Example]:
    generator = np.random.default_rng(0)
    spec = task.workload.spec
    return [
        Example(
            task.workload,
            describe_candidate(spec, option.template, option.knobs, task.target),
            true_seconds(task, option) * math.exp(noise * generator.standard_normal()),
        )
        for option in Options(task.workload, task.target)
    ]


@pytest.mark.parametrize(
    ("spec", "elements"),
    [
        (Conv2dSpec(1, 8, 10, 10, 16, (3, 3)), (800, 16 * 8 * 9, 16 * 64)),
        (Conv2dSpec(1, 8, 10, 10, 8, (3, 3), groups=8), (800, 8 * 9, 8 * 64)),
        (MatmulSpec(5, 7, 3), (15, 21, 35)),
        (MatmulSpec(5, 7, 3, ACTIVATION, (2,)), (30 + 42, 0, 70)),
        (AttentionSpec((1, 2), 4, 6, 8, 8, 0.35), (2 * (4 * 8 + 6 * 16), 0, 2 * 4 * 8)),
        (PoolSpec(1, 3, 8, 8), (192, 0, 48)),
        (RelayoutSpec(TO_BLOCKED, 1, 5, 9, 16), (45, 0, 144)),
    ],
)
def test_work_counts_elements_and_is_a_product(spec, elements):
    work = work_of(spec)
    assert (work.read, work.weights, work.written) == elements
    assert work.rows * work.columns * work.depth == work.macs


def test_features_are_finite_and_tell_candidates_apart():
    task = conv_task(64, 56, 64)
    samples = [example.features for example in examples_of(task)]
    assert all(math.isfinite(value) for sample in samples for value in sample.values())
    encoded = np.nan_to_num(Table(samples).encode(samples), nan=-1.0)
    assert len(np.unique(encoded, axis=0)) == len(samples)


def test_table_leaves_out_what_it_was_not_made_from():
    table = Table([{"a": 1.0, "b": 2.0}])
    encoded = table.encode([{"b": 3.0, "c": 4.0}])
    assert table.names == ["a", "b"]
    assert np.isnan(encoded[0, 0]) and encoded[0, 1] == 3.0


def test_untrained_ranker_is_the_analytic_estimate():
    samples = [example.features for example in examples_of(conv_task(64, 56, 64))]
    ranker = Ranker()
    ranker.fit([Example("one", samples[0], 1.0)])
    assert not ranker.trained
    np.testing.assert_allclose(ranker.predict(samples), [s["estimate"] * math.log(2) for s in samples])
    assert ranker.predict([]).shape == (0,)


def test_ranker_learns_from_other_layers():
    *others, unseen = conv_tasks()
    ranker = Ranker()
    untrained = Ranker()
    ranker.fit([example for task in others for example in examples_of(task, noise=0.02)])
    held = examples_of(unseen)
    samples, actual = [one.features for one in held], [one.seconds for one in held]
    assert rank_correlation(ranker.predict(samples), actual) > 0.9
    assert rank_correlation(ranker.predict(samples), actual) > rank_correlation(untrained.predict(samples), actual)
    assert place_of_best(ranker.predict(samples), actual) <= 0.1


def test_ranker_ignores_how_slow_a_layer_is_as_a_whole():
    """Only differences within a layer are learned: a layer on a slow day must not spoil the others."""
    first, second = (examples_of(task) for task in conv_tasks(2))
    slow = [Example(one.group, one.features, 3 * one.seconds) for one in second]
    samples = [one.features for one in first]
    fair, unfair = Ranker(), Ranker()
    fair.fit(first + second)
    unfair.fit(first + slow)
    np.testing.assert_allclose(fair.predict(samples), unfair.predict(samples), atol=1e-5)


def test_layers_of_which_only_the_good_are_known_do_not_hide_what_is_good():
    """A search leaves many good candidates and few others: that the good ones are alike says nothing against them."""

    def example(layer: int, number: int, good: bool) -> Example:
        features = {"estimate": 0.0, "good": float(good), "number": float(number)}
        return Example(layer, features, layer * (1.0 if good else 2.0))

    fair = [example(1, number % 40, number < 40) for number in range(80)]
    searched = [example(layer, number, True) for layer in range(2, 8) for number in range(40)]
    ranker = Ranker()
    ranker.fit(fair + searched)
    good, bad = ranker.predict([example(5, 7, True).features, example(5, 7, False).features])
    assert bad - good == pytest.approx(math.log(2), rel=0.15)


def test_loss_within_groups_has_the_right_gradient():
    generator = np.random.default_rng(0)
    groups = np.array([0, 0, 0, 1, 1])
    labels, predicted, weights = generator.standard_normal((3, 5))
    weights = np.exp(weights)

    def value(at: np.ndarray) -> float:
        errors = at - labels
        means = [np.average(errors[groups == group], weights=weights[groups == group]) for group in (0, 1)]
        return float(np.sum(weights * (errors - np.array(means)[groups]) ** 2) / 2)

    gradient, hessian = within_groups(groups, labels, weights)(predicted, None)
    steps = 1e-6 * np.eye(5)
    expected = [(value(predicted + step) - value(predicted - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert (hessian == weights).all()


def test_ranker_repeats_itself():
    examples = examples_of(conv_task(64, 56, 64))
    samples = [one.features for one in examples]
    first, second = Ranker(seed=3), Ranker(seed=3)
    first.fit(examples)
    second.fit(examples)
    assert np.array_equal(first.predict(samples), second.predict(samples))


def test_scores_of_a_ranking():
    actual = [3.0, 1.0, 2.0, 4.0]
    assert rank_correlation(actual, actual) == pytest.approx(1.0)
    assert rank_correlation([-one for one in actual], actual) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2], [1, 1, 2]) == pytest.approx(1.0)
    assert math.isnan(rank_correlation([1.0], [1.0])) and math.isnan(rank_correlation([1, 1], [1, 2]))
    assert (place_of_best(actual, actual), place_of_best([-one for one in actual], actual)) == (0.0, 1.0)
    assert regret([2, 1, 0, 3], actual) == pytest.approx(1.0)
    assert regret(actual, actual) == 0.0


def test_regressor_predicts_layers_never_seen_within_its_error():
    tasks = [
        conv_task(16 * c, size, 16 * o, kernel)
        for c in (1, 2, 4, 8)
        for size in (7, 14, 28)
        for o in (2, 4, 8)
        for kernel in (1, 3)
    ]
    unseen = tasks[::5]
    seen = [task for task in tasks if task not in unseen]
    regressor = LatencyRegressor()
    regressor.fit([example for task in seen for example in examples_of(task, noise=0.03)[::9]])
    held = [example for task in unseen for example in examples_of(task)[::7]]
    actual = np.array([one.seconds for one in held])
    seconds, error = regressor.predict([one.features for one in held])
    off = np.abs(seconds / actual - 1)
    assert np.median(off) < 0.1
    assert 0.5 < np.mean(off <= error) <= 1.0
    assert np.median(error) < 0.3


def test_regressor_knows_when_it_knows_nothing():
    regressor = LatencyRegressor()
    examples = examples_of(conv_task(64, 56, 64))
    regressor.fit(examples)  # one layer only: nothing to judge itself by
    assert not regressor.trained
    seconds, error = regressor.predict([examples[0].features])
    assert seconds[0] == pytest.approx(2.0 ** examples[0].features["estimate"])
    assert error[0] == 1.0
    assert regressor.predict([])[0].shape == (0,)


def test_drift_between_samples_is_taken_out():
    fast, slow = Option("conv2d", 1), Option("conv2d", 2)
    samples = {
        fast: [Outcome(fast, "ok", 1.0, baseline=1.0), Outcome(fast, "ok", 1.47, baseline=1.4)],
        slow: [Outcome(slow, "ok", 1.5, baseline=1.0)],
    }
    seconds = typical_seconds(samples)
    assert seconds[slow] / seconds[fast] == pytest.approx(1.5 / 1.025)


def test_disturbed_samples_teach_nothing():
    calm, torn, starved = (Option("conv2d", index) for index in range(3))
    samples = {
        calm: [Outcome(calm, "ok", 1.0, 0.01, baseline=2.0), Outcome(calm, "ok", 9.0, 0.9, baseline=2.0)],
        torn: [Outcome(torn, "ok", 0.1, 0.5, baseline=2.0)],  # its own timings are far apart
        starved: [Outcome(starved, "ok", 1.0, 0.01, baseline=8.0)],  # the default took four times as long beside it
    }
    assert typical_seconds(samples) == {calm: pytest.approx(1.0)}


def test_register_tiles_are_described_alike_in_every_template():
    spec = Conv2dSpec(1, 64, 28, 28, 96, (3, 3), (1, 1), (1, 1, 1, 1))
    conv = geometry_of(Conv2dKnobs(vectors=2, rows=1, columns=12), spec, TARGET)
    product = MatmulSpec(784, 96, 576)
    matmul = geometry_of(MatmulKnobs(rows=12, vectors=2, row_chunks=3), product, TARGET)
    assert conv is not None and matmul is not None
    first, second = (dict(geometry_features(one, TARGET)) for one in (conv, matmul))
    same = ("accumulators", "loads per multiply-add", "row fill", "vector fill", "panel over l2", "registers used")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert first["loads per multiply-add"] == pytest.approx(14 / 24)
    assert first["row fill"] == pytest.approx(784 / (66 * 12))
    assert second["imbalance"] == pytest.approx(4 / 3) and TARGET.cores == 2  # three pieces for two threads
    assert geometry_of(object(), spec, TARGET) is None


def test_candidates_that_cannot_be_told_apart_share_their_places():
    assert place_of_best([0.0, 0.0, 0.0], [3.0, 1.0, 2.0]) == 0.5
    assert place_of_best([0.0, 1.0, 2.0], [1.01, 5.0, 1.0]) == 1.0
    assert place_of_best([0.0, 1.0, 2.0], [1.01, 5.0, 1.0], noise=0.02) == 0.0
    assert regret([0.0, 1.0, 2.0], [3.0, 1.5, 1.0], tries=2) == pytest.approx(0.5)


def test_missing_xgboost_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(TersorError, match=r"needs xgboost.*pip install 'tersor\[tune\]'"):
        Trees().fit([{"size": 1.0}], np.zeros(1))
