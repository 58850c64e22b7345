"""How well the tuner's models predict a network whose layers they have never seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from tersor.targets.templates.option import Workload
from tersor.targets.tuning.examples import Examples
from tersor.targets.tuning.latency import LatencyRegressor
from tersor.targets.tuning.model import Example, Ranker, place_of_best, rank_correlation, regret
from tersor.targets.tuning.records import Record

FEWEST = 10  # measured candidates of a task: with fewer, "the top 10 %" means nothing
TOP = 0.1
NOISE = 0.02  # of a timing: candidates that close cannot be told apart
BATCH = 8


@dataclass(frozen=True)
class HeldOut:
    """How one network was predicted from the others.

    Attributes
    ----------
    model
        The network left out, and with it every workload that it has.
    tasks, candidates
        Workloads with enough measured candidates to be ranked, and the candidates that are predicted.
    uniform
        Whether the candidates were drawn uniformly, by ``python -m benchmarks.tuning sample``. Otherwise they are those
        that searches picked: mostly good ones, which are harder to rank, and the true best may be none of them.
    in_top, near_in_top
        Share of the tasks whose fastest candidate is in the ranker's top tenth; and of those with a candidate there
        that is as fast within the noise of a timing.
    place
        Median place of the fastest: 0 is first, 1 last.
    correlation, regret
        Medians over tasks; see `tersor.targets.tuning.model`.
    batch_regret
        Mean over tasks of how much slower the best of the ranker's first eight, a batch, is than the fastest.
    error
        Median relative error of the predicted latencies, over all candidates of the network.
    expected_error
        Median of the errors that the regressor itself expects.
    covered
        Share of candidates whose error is within what the regressor expects of it.
    """

    model: str
    tasks: int
    candidates: int
    uniform: bool
    in_top: float
    near_in_top: float
    place: float
    correlation: float
    regret: float
    batch_regret: float
    error: float
    expected_error: float
    covered: float


def held_out(model: str, workloads: Collection[Workload], records: Iterable[Record]) -> HeldOut:
    """Train without the workloads of one network and predict its candidates: the uniformly drawn if there are any."""
    records = list(records)
    drawn = {(r.workload, r.option) for r in records if r.purpose == "random" and r.workload in workloads}
    collected = Examples(records)
    examples = collected.all()
    seen = [example for example in examples if example.group not in workloads]
    held = [
        example
        for key, example in zip(collected.seconds(), examples, strict=True)
        if example.group in workloads and (key in drawn or not drawn)
    ]
    ranker, regressor = Ranker(), LatencyRegressor()
    ranker.fit(seen)
    regressor.fit(seen)
    places, correlations, regrets, tops, near, batches = [], [], [], [], [], []
    tasks = [task for task in _by_group(held) if len(task) >= FEWEST]
    for task in tasks:
        predicted = ranker.predict([example.features for example in task])
        actual = [example.seconds for example in task]
        places.append(place_of_best(predicted, actual))
        tops.append(places[-1] * (len(task) - 1) < TOP * len(task))
        near.append(place_of_best(predicted, actual, NOISE) * (len(task) - 1) < TOP * len(task))
        batches.append(regret(predicted, actual, BATCH))
        correlations.append(rank_correlation(predicted, actual))
        regrets.append(regret(predicted, actual))
    seconds, expected = regressor.predict([example.features for example in held])
    error = np.abs(seconds / np.array([example.seconds for example in held]) - 1)
    return HeldOut(
        model=model,
        tasks=len(tasks),
        candidates=len(held),
        uniform=bool(drawn),
        in_top=_mean(tops),
        near_in_top=_mean(near),
        place=_median(places),
        correlation=_median(correlations),
        regret=_median(regrets),
        batch_regret=_mean(batches),
        error=_median(error),
        expected_error=_median(expected),
        covered=_mean(error <= expected),
    )


def _by_group(examples: Iterable[Example]) -> list[list[Example]]:
    groups: dict[object, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    return list(groups.values())


def _mean(values: Collection[float]) -> float:
    return float(np.mean(list(values))) if len(values) else float("nan")


def _median(values: Collection[float]) -> float:
    return float(np.median(list(values))) if len(values) else float("nan")
