"""The ranker: gradient-boosted trees that correct the analytic estimate of how long a candidate takes.

The trees learn, from every fitting record of every layer, how much of

    log(seconds) - log(estimate)

sets one candidate of a layer apart from another: the loss is the squared error after the mean error over each layer's
records is taken away. What all candidates of a layer have in common is left open. Trees that had to learn it would
believe that the candidates of a much searched layer, all of them good, are nothing special. Fast candidates weigh more,
since it is among them that the search has to choose, and two sets of trees are averaged. A new layer starts from what
others taught; before anything was measured, the estimate alone ranks.

Trees of the same kind learn how long a candidate takes to build: a kernel written out in thousands of instructions
costs as much as a dozen others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ...ir import TersorError
from .features import CODE_SIZE, Features, Table

Numbers = Sequence[float] | np.ndarray
Loss = Callable[[np.ndarray, Any], tuple[np.ndarray, np.ndarray]]  # gradients and second derivatives of predictions

FEWEST_EXAMPLES = 12  # below this, the trees would only learn noise
ROUNDS = 120
RANKER_ROUNDS = 200
MEMBERS = 2  # sets of trees that are averaged
LEAST_WEIGHT, HASTE = 0.1, 5.0  # of an example: LEAST_WEIGHT + (seconds / those of the layer's fastest) ** -HASTE
THREADS = 1  # of training: its threads wait for each other so often that on a busy machine two are far slower than one
# What trying a candidate costs, before records tell: roughly, on one core.
TIMING_SECONDS = 0.1
LEAST_BUILD_SECONDS = 0.3
SECONDS_PER_INSTRUCTION = 4e-3  # of the innermost arithmetic, written out
PARAMETERS = {
    "objective": "reg:squarederror",
    "base_score": 0.0,  # not the mean of the labels, which a loss within groups leaves open
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.1,
    "min_child_weight": 2,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "verbosity": 0,
    "nthread": THREADS,
}


@dataclass(frozen=True)
class Example:
    """One measured candidate.

    Attributes
    ----------
    group
        What it competes with: equal for candidates of the same layer.
    features
        From `describe_candidate`.
    seconds
        How long a call took.
    build_seconds
        How long generating its code took; NaN if unknown.
    """

    group: Hashable
    features: Features
    seconds: float
    build_seconds: float = math.nan


def require_xgboost() -> None:
    """Raise TersorError with what to install when xgboost is missing; importing it is left to who needs it."""
    if find_spec("xgboost") is None:
        raise TersorError("tuning needs xgboost, which is not installed: pip install 'tersor[tune]'")


def log_estimates(samples: Sequence[Features]) -> np.ndarray:
    """Natural logarithms of the analytic estimates in seconds."""
    return np.array([sample["estimate"] for sample in samples]) * math.log(2)


class Trees:
    """Gradient-boosted trees on features that may be missing.

    Parameters
    ----------
    seed
        Of the rows and columns that each tree sees.
    rounds
        Number of trees.
    """

    def __init__(self, seed: int = 0, rounds: int = ROUNDS) -> None:
        self._parameters = {**PARAMETERS, "seed": seed}
        self._rounds = rounds
        self._table = Table(())
        self._booster: Any = None

    def fit(self, samples: Sequence[Features], labels: np.ndarray, loss: Loss | None = None) -> None:
        """Learn ``labels``, of shape (samples,): by the mean of squared errors unless ``loss`` is another."""
        require_xgboost()
        import xgboost

        self._table = Table(samples)
        data = xgboost.DMatrix(self._table.encode(samples), label=labels, nthread=THREADS)
        self._booster = xgboost.train(self._parameters, data, num_boost_round=self._rounds, obj=loss)

    def predict(self, samples: Sequence[Features]) -> np.ndarray:
        """Labels of other samples, float64 of shape (samples,)."""
        return self._booster.inplace_predict(self._table.encode(samples)).astype(np.float64)


class Ranker:
    """Predicts how candidates of one layer compare, and what trying them costs.

    Parameters
    ----------
    seed
        See `Trees`.

    Attributes
    ----------
    version
        How often it has learned.
    """

    def __init__(self, seed: int = 0) -> None:
        self._members = [Trees(seed + member, RANKER_ROUNDS) for member in range(MEMBERS)]
        self._cost_trees = Trees(seed)
        self._knows_costs = False
        self.version = 0

    @property
    def trained(self) -> bool:
        """Whether it has learned anything; else the analytic estimate is all it knows."""
        return self.version > 0

    def fit(self, examples: Sequence[Example]) -> None:
        """Learn from measured candidates, which raises `version`; too few of them leave the ranker as it is."""
        if len(examples) < FEWEST_EXAMPLES:
            return
        samples = [example.features for example in examples]
        groups = _group_numbers(examples)
        logs = np.log([example.seconds for example in examples])
        residuals = logs - log_estimates(samples)
        weights = LEAST_WEIGHT + np.exp(-HASTE * (logs - _group_minima(groups, logs)))
        for trees in self._members:
            trees.fit(samples, residuals, within_groups(groups, residuals, weights))
        self.version += 1
        self._fit_costs([example for example in examples if example.build_seconds > 0])

    def _fit_costs(self, examples: Sequence[Example]) -> None:
        if len(examples) < FEWEST_EXAMPLES:
            return
        samples = [example.features for example in examples]
        self._cost_trees.fit(samples, np.log([example.build_seconds for example in examples]))
        self._knows_costs = True

    def predict(self, samples: Sequence[Features]) -> np.ndarray:
        """Logarithms of seconds, up to a constant for each layer; float64 of shape (samples,)."""
        if not samples:
            return np.zeros(0)
        estimates = log_estimates(samples)
        if not self.trained:
            return estimates
        return estimates + np.mean([trees.predict(samples) for trees in self._members], axis=0)

    def costs(self, samples: Sequence[Features]) -> np.ndarray:
        """Seconds that it takes to build and to time candidates, of shape (samples,)."""
        if not samples:
            return np.zeros(0)
        if self._knows_costs:
            return TIMING_SECONDS + np.exp(self._cost_trees.predict(samples))
        written_out = np.array([sample.get(CODE_SIZE, 0.0) for sample in samples])
        return TIMING_SECONDS + LEAST_BUILD_SECONDS + SECONDS_PER_INSTRUCTION * written_out


def _group_numbers(examples: Sequence[Example]) -> np.ndarray:
    """For each example, the number of its group."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(example.group, len(numbers)) for example in examples])


def within_groups(groups: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Loss:
    """Weighted squares of the errors less their mean over each group, halved: what a group has in common is free.

    Parameters
    ----------
    groups
        For each example, the number of its group: 0, 1, ...; of shape (examples,), as the others are.
    labels, weights
        What to predict, and how much it counts.

    Returns
    -------
    A function of predictions, and of a matrix that it does not need, that answers with gradients and with an upper
    bound of the second derivatives, as xgboost asks for.
    """
    totals = np.bincount(groups, weights=weights)

    def loss(predicted: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
        errors = predicted - labels
        means = np.bincount(groups, weights=weights * errors) / totals
        return weights * (errors - means[groups]), weights

    return loss


def _group_minima(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each example, the smallest of the values of its group."""
    minima = np.full(groups.max() + 1, np.inf)
    np.minimum.at(minima, groups, values)
    return minima[groups]


def rank_correlation(predicted: Numbers, actual: Numbers) -> float:
    """Spearman's correlation of two rankings; NaN for fewer than two, or when all are equal."""
    from scipy.stats import spearmanr  # takes most of a second to import

    if min(len(set(predicted)), len(set(actual))) < 2:
        return math.nan
    return float(spearmanr(predicted, actual).statistic)


def place_of_best(predicted: Numbers, actual: Numbers, noise: float = 0.0) -> float:
    """Where the ranker puts the candidate that is truly fastest: 0 is first, 1 is last.

    Parameters
    ----------
    noise
        Candidates that are slower than the fastest by no more than this, relatively, count as fastest, too: the first
        of them is looked for.
    """
    from scipy.stats import rankdata  # takes most of a second to import

    true = np.asarray(actual)
    places = rankdata(predicted) - 1  # candidates that the ranker cannot tell apart share the mean of their places
    return float(places[true <= (1 + noise) * true.min()].min()) / max(len(true) - 1, 1)


def regret(predicted: Numbers, actual: Numbers, tries: int = 1) -> float:
    """How much slower the best of the ``tries`` candidates that the ranker puts first is than the fastest."""
    true = np.asarray(actual)
    first = np.argsort(np.asarray(predicted), kind="stable")[:tries]
    return float(true[first].min() / true.min()) - 1
